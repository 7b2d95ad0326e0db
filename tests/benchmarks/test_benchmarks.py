"""Benchmarks run, end in a line of JSON, and say on what they were measured; counts of a bundle's graphs."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from benchmarks import report
from hbaf_edge.bench.document import Report, Section
from hbaf_edge.errors import InputError
from tests.conftest import ROOT
from tests.hbaf_edge.bench.test_report import SCHEMA


def benchmark(*arguments):
    """Sections by name of a benchmark that runs in its own process."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    jsonschema.validate(result, SCHEMA)
    assert {"cpu", "cores", "python", "onnxruntime", "OMP_WAIT_POLICY"} <= set(result["machine"])
    for section in result["sections"]:
        assert section["title"] in " ".join(done.stdout.split())
    return {section["name"]: section for section in result["sections"]}


@pytest.mark.slow
def test_first_look_runs():
    sections = benchmark("benchmarks.first_look", "--threads", 1, "--repeats", 3)
    measures = sections["first_look"]["measures"]
    assert measures["a turn of 3 s and twelve words, ms"]["p50"] == sections["stages"]["measures"]["a turn"]["p50"] > 0
    assert measures["import hbaf_edge, ms"]["p50"] < measures["HBAFRuntime(), ms"]["p50"]
    assert measures["peak memory of hbaf-edge demo, MB"]["p50"] > 50


@pytest.mark.slow
def test_incremental_runs():
    sections = benchmark("benchmarks.incremental", "--repeats", 3)
    early, late = sections["depth"]["text"].removesuffix(" bytes.").rsplit(" ", 3)[1::2]
    assert early == late, "the state's size does not grow"
    measures = {name: section["measures"] for name, section in sections.items()}
    whole, scope = (measures["depth"][f"turn 33, {name}"] for name in ("whole", "dialogue scope"))
    assert whole["p50"] > scope["p50"] > 0
    assert set(measures["end_of_speech"]) == {"1 s", "3 s", "5 s", "10 s", "20 s"}
    assert set(measures["feeding"]) == {"alone", "while another thread predicts"}


def test_only_a_whole_run_is_saved_and_errors_are_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)

    def fails():
        raise InputError("no model")

    done = Section("done", "Done", ("what",), [("a",)])
    assert report.conclude("x", Report("r", {}), [("one", lambda: done), ("two", fails)], save=True) == 1
    assert not list(tmp_path.iterdir())
    assert report.conclude("x", Report("r", {}), [("one", lambda: done)], save=True) == 0
    assert json.loads(Path(tmp_path / "x.json").read_text())["sections"][0]["name"] == "done"
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        report.run(fails, "What it does.")
    assert ended.value.code == report.UNUSABLE
    assert capsys.readouterr().err.splitlines()[-1] == "error: no model"
