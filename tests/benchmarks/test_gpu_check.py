"""The GPU check: its tests can be collected where it runs, and no step takes the others' results with it."""

import json
import os
import subprocess
import sys

import pytest
import typer

from benchmarks import gpu_check
from benchmarks.gpu_check import Step, execute
from hbaf_edge.errors import BackendError

# As if these packages were not installed.
LACKING = """
import sys
from importlib.machinery import PathFinder

lacks, find = set(sys.argv[1].split()), PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name.split(".")[0] in lacks else find(name, *rest))
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
def test_its_tests_can_be_collected_without_what_a_gpu_machine_lacks(step, count):
    arguments = {s.name: s.arguments for s in gpu_check.STEPS}[step]
    assert arguments[:2] == ("-m", "pytest")
    command = [sys.executable, "-c", LACKING, PACKAGES, "--collect-only", "-q", *arguments[2:]]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("::") + done.stdout.count("<Function") >= count


def test_all_steps_fit_into_eight_minutes_and_have_files_of_their_own():
    assert sum(step.seconds for step in gpu_check.STEPS) <= 480
    assert len({step.name for step in gpu_check.STEPS}) == len(gpu_check.STEPS)


def test_a_step_that_fails_or_hangs_leaves_its_output_and_the_others(tmp_path, monkeypatch, capsys):
    steps = (
        Step("good", 20, python("print('a table'); print('{\"a\": 1}')")),
        Step("bad", 20, python("print('before'); raise ValueError('broken')")),
        Step("slow", 1, python("import os, time; print('{\"half\": 1}', flush=True); os.fork(); time.sleep(60)")),
        Step("tool", 20, python("print(1)"), tool=("no-such-tool",)),
        Step("last", 20, python("print('{\"b\": 2}')")),
    )
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    monkeypatch.setattr(gpu_check, "card", lambda: "Card, 580, 1 MiB")
    with pytest.raises(typer.Exit) as end:
        gpu_check.run(tmp_path, 2.0)
    assert end.value.exit_code == 1
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {name: record["status"] for name, record in found.items()} == {
        "good": "ok", "bad": "failed: exit code 1", "slow": "timeout after 1 s",
        "tool": "skipped: no-such-tool is not installed", "last": "ok",
    }  # fmt: skip
    assert {record["card"] for record in found.values()} == {"Card, 580, 1 MiB"}
    assert (found["good"]["result"], found["slow"]["result"], found["last"]["result"]) == (
        {"a": 1},
        {"half": 1},
        {"b": 2},
    )
    assert found["bad"]["output"][0] == "before"
    assert found["bad"]["output"][-1] == "ValueError: broken"
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["slow"] == "timeout after 1 s"


def test_without_a_gpu_a_step_is_skipped():
    assert execute(Step("step", 20, python("raise SystemExit(1)")), None, 20)["status"] == "skipped: no GPU"


def test_conversations_run_on_the_public_interface(capsys):
    with pytest.raises(typer.Exit) as end:
        gpu_check.conversations("cpu", 2, 2)
    assert end.value.exit_code == 0
    compared = json.loads(capsys.readouterr().out)["cpu"]
    assert (compared["turns"], compared["flips"], compared["largest difference"]) == (42, 0, 0.0)
    assert 0 < compared["p50 ms"]["cpu"] <= compared["p99 ms"]["cpu"]


def test_what_is_carried_is_whole_and_not_too_large(tmp_path, monkeypatch):
    names = {str(path.relative_to(gpu_check.ROOT)) for path in gpu_check.tracked()}
    for name in (
        CUBINS_MANIFEST,
        "hbaf_edge/models/default/manifest.json",
        "tests/__init__.py",
    ):
        assert name in names
    assert not any(name.startswith((".venv", "runs")) for name in names)
    (tmp_path / "a").write_bytes(os.urandom(3000))
    assert gpu_check.pack(tmp_path / "a.tar.xz", [tmp_path / "a"], tmp_path).stat().st_size < 4000
    monkeypatch.setattr(gpu_check, "MAX_PART", 2000)
    with pytest.raises(BackendError, match=r"a.tar.xz has 0 MiB; 0 can be carried"):
        gpu_check.pack(tmp_path / "a.tar.xz", [tmp_path / "a"], tmp_path)


def test_a_missing_interpreter_is_said_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="no-such-python"):
        gpu_check.prepare(tmp_path, "no-such-python", tmp_path)
