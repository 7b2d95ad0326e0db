"""Benchmarks run, end in JSON, and say on what they were measured."""

import json
import subprocess
import sys

import pytest

from benchmarks import graphs
from benchmarks.report import percentiles
from tests.conftest import ROOT


def test_percentiles():
    assert percentiles(list(range(1, 101))) == {"p50": 50.5, "p90": 90.1, "p99": 99.01}


@pytest.mark.slow
def test_first_look_runs():
    command = [sys.executable, "-m", "benchmarks.first_look", "--threads", "1", "--repeats", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["predict_ms"]["p50"] > 0
    assert result["demo_peak_mb"] > 50
    assert {"cpu", "cores", "python", "onnxruntime", "OMP_WAIT_POLICY"} <= set(result["machine"])
    assert "first look" in done.stdout


@pytest.mark.slow
def test_picture(tmp_path):
    command = [sys.executable, "-m", "benchmarks.picture", "--out", str(tmp_path / "p.png")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_incremental_runs():
    command = [sys.executable, "-m", "benchmarks.incremental", "--repeats", "3", "--no-torch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["depth"]["state_bytes"][0] == result["depth"]["state_bytes"][1]
    assert result["ratios"]["full fusion pass over 94 turns against one step"] > 1
    assert set(result["end_of_speech"]) == {"1 s", "3 s", "5 s", "10 s", "20 s"}
    assert set(result["feeding"]) == {"alone", "beside a predict"}


def test_graphs_are_counted_and_timed(tiny, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["graphs", str(tiny.bundle), "--repeats", "3"])
    graphs.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["bundles"]["bundle"]
    assert set(result) == {"audio", "text", "utterance", "dialogue"}
    for found in result.values():
        assert 0 < found["nodes"] <= found["stored_nodes"]
        assert sum(found["microseconds"].values()) > 0
        assert found["passed_ms"]["p50"] > 0 < found["bound_ms"]["p50"]
