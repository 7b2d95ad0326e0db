"""The commands `hbaf-edge benchmark` and `compare`."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
from rich.console import Console

from hbaf_edge.bench import command, page, sections
from hbaf_edge.bench.document import Report, Section
from hbaf_edge.bench.turns import Bench
from hbaf_edge.errors import BackendError
from tests.conftest import ROOT
from tests.hbaf_edge.bench.test_report import SCHEMA
from tests.hbaf_edge.test_cli import run


@pytest.fixture(scope="module")
def complete_report(tiny, tmp_path_factory):
    """The folder of a complete report, and the output of the command."""
    folder = tmp_path_factory.mktemp("report")
    result = run("benchmark", "--quick", "--repeats", 11, "--threads", 1, "--bundle", tiny.bundle, "--report", folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_benchmark_measures_every_section(complete_report):
    folder, output = complete_report
    report = json.loads((folder / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    names = [s["name"] for s in report["sections"]]
    expected = "stages reference_workload start threads context lengths modalities together memory energy"
    assert names == expected.split()
    assert report["stopped"] == ""
    stages = next(s for s in report["sections"] if s["name"] == "stages")["measures"]
    parts = [sections.STAGES[name] for name in ("features", "audio", "text", "utterance", "dialogue")]
    assert sum(stages[p]["p50"] for p in parts) == pytest.approx(stages["a turn"]["p50"], rel=0.25)
    assert {"stages.png", "context.png", "lengths.png", "together.png", "report.html"} <= set(os.listdir(folder))
    for text in ("A turn by stage", "Energy", f"report: {folder / 'report.html'}"):
        assert text in "".join(output.split("\n")) or text in output


def test_compare_reads_a_report_of_benchmark(complete_report):
    folder = complete_report[0]
    result = run("compare", folder, folder / "report.json", "--all")
    assert result.returncode == 0, result.stderr
    assert "within noise" in result.stdout
    assert "worse" not in result.stdout
    assert run("compare", folder, ROOT / "README.md").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", 0), "--repeats 0; 6 samples or more"),
        (("--bundle", "nowhere"), "nowhere"),
        (("--provider", "gpu"), "provider 'gpu' is unknown"),
        (("--report", "README.md"), "no report can be written to README.md"),
    ],
)
def test_invalid_options_are_rejected_before_measuring(arguments, message):
    result = run("benchmark", "--quick", *arguments)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_reports_its_sections(tiny, tmp_path, number):
    command = [sys.executable, "-m", "hbaf_edge", "benchmark", "--bundle", str(tiny.bundle), "--threads", "1",
               "--repeats", "21", "--report", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert any("A turn by stage" in line for line in process.stdout)  # the first section is done
    time.sleep(0.2)
    process.send_signal(number)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130, rest
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["stopped"].startswith("interrupted while")
    assert report["sections"][0]["name"] == "stages"
    assert "Incomplete: interrupted while" in (tmp_path / "report.html").read_text()


def test_other_sections_are_measured_when_one_fails(tmp_path):
    simple = Section("simple", "Simple", ("name",), [("a",)])
    picture = Section("picture", "Picture", ("name",), [("b",)], figure={"kind": "bars", "title": "t"})

    def failing():
        raise SystemExit("no model")

    report, console = Report("r", {}), Console(file=io.StringIO())
    work = [("one", lambda: simple), ("two", failing), ("three", lambda: [simple, picture]), ("four", lambda: None)]
    command.measure_sections(report, work, None, console, tmp_path)
    assert [s.name for s in report.sections] == ["simple", "simple", "picture"]
    assert report.warnings == ["two was not measured: SystemExit: no model"]
    with pytest.raises(KeyError):
        command.finish(report, tmp_path, console)
    stored = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(stored, SCHEMA)
    assert stored["failed"]
    assert len(stored["sections"]) == 3
    report.sections.pop()
    assert command.finish(report, tmp_path, console) == 1


def test_error_says_what_to_install_when_matplotlib_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"pip install 'hbaf-edge\[bench\]'"):
        page.check_folder(tmp_path)


def test_measured_turn_is_always_the_same(tiny):
    bench = Bench([tiny.bundle], 1, "cpu", 5)
    turn = sections.repeatable_turn(bench.runtime(), seconds=0.5, past=3)
    assert {tuple(turn()) for _ in range(3)} == {("features", "audio", "text", "utterance", "dialogue", "total")}
    assert bench.runtime() is bench.runtime()
    assert bench.runtime(2) is not bench.runtime()
