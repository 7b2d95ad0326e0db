"""The GPU check: its tests can be collected on a GPU machine, and a failing step does not affect the others."""

import json
import os
import subprocess
import sys

import pytest
import typer

from benchmarks import gpu_check
from benchmarks.gpu_check import Step, execute
from hbaf_edge.errors import BackendError

# Runs pytest as if the packages of the first argument were not installed.
WITHOUT_PACKAGES = """
import sys
from importlib.machinery import PathFinder

absent, find = set(sys.argv[1].split()), PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name.split(".")[0] in absent else find(name, *rest))
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""
PACKAGES = (
    "typer tyro rich onnx onnxscript transformers torchaudio torchmetrics safetensors peft av tensorboard filelock "
    "matplotlib tensorrt tensorrt_rtx pycuda ctranslate2 jsonschema mlcommons_loadgen"
)

CUBINS_MANIFEST = "hbaf_edge/backends/cuda/cubins/manifest.json"


def python(code):
    return "-c", code


@pytest.mark.parametrize(
    ("step", "count"), [("launcher", 4), ("kernels", 50)], ids=lambda x: x if isinstance(x, str) else ""
)
def test_tests_of_a_step_can_be_collected_without_packages_that_a_gpu_machine_lacks(step, count):
    arguments = {s.name: s.arguments for s in gpu_check.STEPS}[step]
    assert arguments[:2] == ("-m", "pytest")
    command = [sys.executable, "-c", WITHOUT_PACKAGES, PACKAGES, "--collect-only", "-q", *arguments[2:]]
    process = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-3000:]
    assert process.stdout.count("::") + process.stdout.count("<Function") >= count


def test_the_sanitizer_step_selects_tests():
    step = next(step for step in gpu_check.STEPS if step.name == "sanitizer")
    command = [sys.executable, *step.arguments, "--collect-only", "-q"]
    process = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-3000:]


def test_all_steps_take_at_most_eight_minutes_and_have_different_names():
    assert sum(step.seconds for step in gpu_check.STEPS) <= 480
    assert len({step.name for step in gpu_check.STEPS}) == len(gpu_check.STEPS)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_step_that_fails_or_hangs_is_recorded_and_the_others_run(tmp_path, monkeypatch, capsys, as_json):
    steps = (
        Step("good", 20, python("print('a table'); print('{\"a\": 1}')")),
        Step("bad", 20, python("print('before'); raise ValueError('broken')")),
        Step("slow", 1, python("import os, time; print('{\"half\": 1}', flush=True); os.fork(); time.sleep(60)")),
        Step("tool", 20, python("print(1)"), tool=("no-such-tool",)),
        Step("last", 20, python("print('{\"b\": 2}')")),
    )
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: "Card, 580, 1 MiB")
    with pytest.raises(typer.Exit) as exit_info:
        gpu_check.run(tmp_path, 2.0, as_json=as_json)
    assert exit_info.value.exit_code == 1
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {name: record["status"] for name, record in records.items()} == {
        "good": "ok", "bad": "failed: exit code 1", "slow": "timeout after 1 s",
        "tool": "skipped: no-such-tool is not installed", "last": "ok",
    }  # fmt: skip
    assert {record["card"] for record in records.values()} == {"Card, 580, 1 MiB"}
    results = {name: records[name]["result"] for name in ("good", "slow", "last")}
    assert results == {"good": {"a": 1}, "slow": {"half": 1}, "last": {"b": 2}}
    assert records["bad"]["output"][0] == "before"
    assert records["bad"]["output"][-1] == "ValueError: broken"
    printed = capsys.readouterr().out
    if as_json:
        assert json.loads(printed)["slow"] == "timeout after 1 s"
    else:
        assert "timeout after 1 s" in printed
        assert "{" not in printed


def test_a_step_is_skipped_without_a_gpu():
    assert execute(Step("step", 20, python("raise SystemExit(1)")), None, 20)["status"] == "skipped: no GPU"


def test_conversations_have_no_differences_between_cpu_and_cpu(capsys):
    with pytest.raises(typer.Exit) as exit_info:
        gpu_check.conversations("cpu", 2, 2)
    assert exit_info.value.exit_code == 0
    result = json.loads(capsys.readouterr().out)["cpu"]
    assert (result["turns"], result["flips"], result["largest difference"]) == (42, 0, 0.0)
    assert 0 < result["p50 ms"]["cpu"] <= result["p99 ms"]["cpu"]


def test_the_packed_source_is_complete_and_an_archive_has_a_size_limit(tmp_path, monkeypatch):
    names = {str(path.relative_to(gpu_check.ROOT)) for path in gpu_check.source_files()}
    assert {CUBINS_MANIFEST, "hbaf_edge/models/default/manifest.json", "tests/__init__.py"} <= names
    assert not any(name.startswith((".venv", "runs")) for name in names)
    (tmp_path / "a").write_bytes(os.urandom(3000))
    assert gpu_check.pack(tmp_path / "a.tar.xz", [tmp_path / "a"], tmp_path).stat().st_size < 4000
    monkeypatch.setattr(gpu_check, "MAX_PART", 2000)
    with pytest.raises(BackendError, match=r"a.tar.xz has 0 MiB; at most 0 MiB are allowed"):
        gpu_check.pack(tmp_path / "a.tar.xz", [tmp_path / "a"], tmp_path)


def test_a_missing_interpreter_ends_prepare_with_its_name(tmp_path):
    with pytest.raises(SystemExit, match="no-such-python"):
        gpu_check.prepare(tmp_path, "no-such-python", tmp_path)
