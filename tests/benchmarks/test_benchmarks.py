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
def test_first_look_measures_a_turn_loading_and_memory():
    sections = run_benchmark("benchmarks.first_look", "--threads", 1, "--repeats", 3)
    measures = sections["first_look"]["measures"]
    assert measures["a turn of 3 s and twelve words, ms"]["p50"] == sections["stages"]["measures"]["a turn"]["p50"] > 0
    assert measures["import hbaf_edge, ms"]["p50"] < measures["HBAFRuntime(), ms"]["p50"]
    assert measures["peak memory of hbaf-edge demo, MB"]["p50"] > 50


@pytest.mark.slow
def test_incremental_measures_length_end_of_speech_and_feeding():
    sections = run_benchmark("benchmarks.incremental", "--repeats", 3)
    early, late = sections["depth"]["text"].removesuffix(" bytes.").rsplit(" ", 3)[1::2]
    assert early == late, "the size of the state must not grow"
    measures = {name: section["measures"] for name, section in sections.items()}
    whole, dialogue = (measures["depth"][f"turn 33, {name}"] for name in ("whole", "dialogue scope"))
    assert whole["p50"] > dialogue["p50"] > 0
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
