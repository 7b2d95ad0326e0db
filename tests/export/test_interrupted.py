"""Killed runs and full disks: the old bundle stays intact, and the next run succeeds."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.atomic_replace import check_output
from export.bundle import finish_bundle
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError
from tests.conftest import ROOT

# A process that kills itself when it calls a function for the n-th time; no cleanup code runs.
KILLED_PROCESS = """
import os, shutil, signal, sys
{import_line}
count = 0
original = module.{function}
def kill_at_call(*arguments, **options):
    global count
    count += 1
    if count == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
module.{function} = kill_at_call
from export import {command}
from training.command import cli
cli({command}.main, {arguments!r})
"""
KILLS = [("shutil", "copy", 1), ("shutil", "copy", 3), ("pathlib.Path", "rename", 1), ("pathlib.Path", "rename", 2)]


def run_and_kill(command, arguments, module, function, call):
    """Run a command in a new process that is killed at the given call of a function."""
    is_path = module == "pathlib.Path"
    import_line = "from pathlib import Path as module" if is_path else f"import {module} as module"
    code = KILLED_PROCESS.format(
        import_line=import_line, function=function, call=call, command=command, arguments=arguments
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["another", "itself"])
@pytest.mark.parametrize(("module", "function", "call"), KILLS)
def test_bundle_is_the_old_or_the_new_one_after_a_kill(tiny, tmp_path, module, function, call, source):
    """The run is killed twice at the same call. The next run then cleans up and succeeds."""
    out = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    old_key = load_bundle(out).key
    read = tiny.bundle if source == "another" else out
    arguments = [str(read), "--name", "renamed", "--out", str(out)]
    for _ in range(2):
        assert run_and_kill("bundle", arguments, module, function, call).returncode == -9
    check_output(out)
    current = load_bundle(out)
    assert current.key == old_key or current.manifest["name"] == "renamed"
    finish_bundle(read, out, "renamed")
    assert load_bundle(out).manifest["name"] == "renamed"
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".hbaf-work-")}
    assert names == {"bundle"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process limits are POSIX")
@pytest.mark.parametrize("command", [["export.float16"], ["export.quantize", "--weights-only"], ["export.bundle"]])
def test_full_disk_is_reported_in_one_line_and_leaves_no_files(tiny, tmp_path, command):
    """The process may only write small files; the kernel's error is then the same kind as for a full disk."""
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    start = f"sys.argv[1:] = sys.argv[2:]; runpy.run_module({command[0]!r}, run_name='__main__')"
    arguments = ["x", str(tiny.bundle), *command[1:], "--out", str(tmp_path / "out")]
    process = subprocess.run(
        [sys.executable, "-c", limit + start, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "make room, or give --out a folder on another disk" in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["copy", "json", "card", "rename", "zip"])
def test_failed_write_keeps_the_old_bundle_and_removes_partial_files(tiny, tmp_path, monkeypatch, step):
    out = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    old_key = load_bundle(out).key

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    target = {"copy": "shutil.copy", "json": "export.bundle.json.dumps", "card": "export.bundle.model_card",
              "zip": "zipfile.ZipFile.write"}.get(step)  # fmt: skip
    if step == "rename":
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda a, b: fail() if a.name.endswith("-partial") else rename(a, b))
    else:
        monkeypatch.setattr(target, fail)
    with pytest.raises(OSError, match="No space left"):
        finish_bundle(tiny.bundle, out, "renamed", zipped=step == "zip")
    monkeypatch.undo()
    assert load_bundle(out).key == old_key or step == "zip"  # the folder is complete before the zip is written
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_zip_does_not_replace_a_folder(tiny, tmp_path):
    (tmp_path / "out.hbaf").mkdir()
    with pytest.raises(InputError, match="is a folder, but --zip writes a file of that name; nothing was replaced"):
        finish_bundle(tiny.bundle, tmp_path / "out", zipped=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out.hbaf"}


@pytest.mark.slow
def test_killed_quantisation_leaves_no_bundle_and_can_be_repeated(tiny, tmp_path):
    arguments = [str(tiny.bundle), "--weights-only", "--out", str(tmp_path / "int8")]
    assert run_and_kill("quantize", arguments, "shutil", "copy", 4).returncode == -9
    assert not (tmp_path / "int8").exists()
    process = subprocess.run([sys.executable, "-m", "export.quantize", *arguments], cwd=ROOT, capture_output=True)
    assert process.returncode == 0
    assert load_bundle(tmp_path / "int8").manifest["precision"] == "int8-weights"
    assert not list(tmp_path.glob("*.partial"))
