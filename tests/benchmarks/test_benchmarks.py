"""Benchmarks run, print tables or JSON, and record the machine they were measured on."""

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


def run_benchmark(*arguments):
    """Run a benchmark in its own process and return its sections by name."""
    command = [sys.executable, "-m", *map(str, arguments), "--json"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    result = json.loads(output)
    jsonschema.validate(result, SCHEMA)
    assert {"cpu", "cores", "python", "onnxruntime", "OMP_WAIT_POLICY"} <= set(result["machine"])
    return {section["name"]: section for section in result["sections"]}


@pytest.mark.slow
def test_first_look_runs_the_demo():
    sections = run_benchmark("benchmarks.first_look")
    assert sections["first_look"]["measures"]["peak memory of hbaf-edge demo, MB"]["p50"] > 50
    assert any("KiB of state" in line for (line,) in sections["demo"]["rows"])


@pytest.mark.slow
def test_incremental_measures_end_of_speech_and_feeding():
    measures = {name: s["measures"] for name, s in run_benchmark("benchmarks.incremental", "--repeats", 3).items()}
    assert set(measures["end_of_speech"]) == {"1 s", "3 s", "5 s", "10 s", "20 s"}
    assert set(measures["feeding"]) == {"alone", "while another thread predicts"}


def fail():
    raise InputError("no model")


def test_results_are_saved_only_when_the_run_is_complete(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    complete = [("one", lambda: Section("one", "One", ("what",), [("a",)]))]
    assert report.measure_and_report("x", Report("r", {}), [*complete, ("two", fail)], save=True) == 1
    assert not list(tmp_path.iterdir())
    assert report.measure_and_report("x", Report("r", {}), complete, save=True) == 0
    assert json.loads(Path(tmp_path / "x.json").read_text())["sections"][0]["name"] == "one"


def test_a_benchmark_prints_tables_or_with_json_one_line(capsys):
    sections = [("one", lambda: Section("one", "Title", ("what",), [("a",)]))]
    report.measure_and_report("x", Report("r", {}), sections)
    printed = capsys.readouterr().out
    assert "Title" in printed
    assert "{" not in printed
    report.measure_and_report("x", Report("r", {}), sections, as_json=True)
    printed = capsys.readouterr().out
    assert json.loads(printed)["sections"][0]["title"] == "Title"
    assert printed.count("\n") == 1


def test_an_error_is_one_line_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as exit_info:
        report.run(fail, "A benchmark.")
    assert exit_info.value.code == report.EXIT_UNUSABLE
    assert capsys.readouterr().err.splitlines()[-1] == "error: no model"
