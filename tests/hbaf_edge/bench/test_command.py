"""`hbaf-edge benchmark` and its fellows as users run them."""

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

from hbaf_edge.bench import command, page, scenes
from hbaf_edge.bench.document import Report, Section
from hbaf_edge.bench.turns import Bench
from hbaf_edge.errors import BackendError
from tests.conftest import ROOT
from tests.hbaf_edge.bench.test_report import SCHEMA
from tests.hbaf_edge.test_cli import run


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """A whole report."""
    out = tmp_path_factory.mktemp("report")
    done = run("benchmark", "--quick", "--repeats", 11, "--threads", 1, "--bundle", tiny.bundle, "--report", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_section_is_measured(measured):
    out, shown = measured
    found = json.loads((out / "report.json").read_text())
    jsonschema.validate(found, SCHEMA)
    names = [s["name"] for s in found["sections"]]
    expected = "stages reference_workload start threads context lengths modalities together memory energy"
    assert names == expected.split()
    assert found["stopped"] == ""
    stages = next(s for s in found["sections"] if s["name"] == "stages")["measures"]
    parts = [scenes.STAGES[name] for name in ("features", "audio", "text", "utterance", "dialogue")]
    assert sum(stages[p]["p50"] for p in parts) == pytest.approx(stages["a turn"]["p50"], rel=0.25)
    assert {"stages.png", "context.png", "lengths.png", "together.png", "report.html"} <= set(os.listdir(out))
    for said in ("A turn, stage by stage", "Energy", f"report: {out / 'report.html'}"):
        assert said in "".join(shown.split("\n")) or said in shown


def test_compare_reads_what_benchmark_wrote(measured):
    out = measured[0]
    done = run("compare", out, out / "report.json", "--all")
    assert done.returncode == 0, done.stderr
    assert "within noise" in done.stdout
    assert "worse" not in done.stdout
    assert run("compare", out, ROOT / "README.md").returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--repeats", 0), "--repeats 0; 6 samples or more"),
        (("--bundle", "nowhere"), "nowhere"),
        (("--provider", "gpu"), "provider 'gpu' is unknown"),
        (("--report", "README.md"), "no report can be written to README.md"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(words, said):
    done = run("benchmark", "--quick", *words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_reports_what_it_has(tiny, tmp_path, told):
    command = [sys.executable, "-m", "hbaf_edge", "benchmark", "--bundle", str(tiny.bundle), "--threads", "1",
               "--repeats", "21", "--report", str(tmp_path)]  # fmt: skip
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert any("A turn, stage by stage" in line for line in running.stdout)  # the first section is there
    time.sleep(0.2)
    running.send_signal(told)
    rest = running.communicate(timeout=60)[0]
    assert running.returncode == 130, rest
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["stopped"].startswith("interrupted while")
    assert found["sections"][0]["name"] == "stages"
    assert "Incomplete: interrupted while" in (tmp_path / "report.html").read_text()


def test_a_section_that_fails_is_named_and_loses_no_other(tmp_path):
    done = Section("done", "Done", ("what",), [("a",)])
    picture = Section("drawn", "Drawn", ("what",), [("b",)], figure={"kind": "bars", "title": "t"})

    def fails():
        raise SystemExit("no model")

    made, console = Report("r", {}), Console(file=io.StringIO())
    work = [("one", lambda: done), ("two", fails), ("three", lambda: [done, picture]), ("four", lambda: None)]
    command.measure(made, work, None, console, tmp_path)
    assert [s.name for s in made.sections] == ["done", "done", "drawn"]
    assert made.warnings == ["two was not measured: SystemExit: no model"]
    with pytest.raises(KeyError):
        command.finish(made, tmp_path, console)
    found = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert found["failed"]
    assert len(found["sections"]) == 3
    made.sections.pop()
    assert command.finish(made, tmp_path, console) == 1


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"pip install 'hbaf-edge\[bench\]'"):
        page.check(tmp_path)


def test_a_turn_that_is_measured_is_always_the_same_turn(tiny):
    bench = Bench([tiny.bundle], 1, "cpu", 5)
    turn = scenes.turn_of(bench.runtime(), seconds=0.5, past=3)
    assert {tuple(turn()) for _ in range(3)} == {("features", "audio", "text", "utterance", "dialogue", "total")}
    assert bench.runtime() is bench.runtime()
    assert bench.runtime(2) is not bench.runtime()
