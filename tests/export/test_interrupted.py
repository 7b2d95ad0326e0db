"""Killed at any point, or with a full disk: what stood there before stands there still, and the next run succeeds."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export import bundle as module
from export.bundle import finished
from export.place import check_place
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError
from tests.conftest import ROOT

# A process that dies, without a chance to tidy up, when it calls a function for the n-th time.
DIES = """
import os, shutil, signal, sys
import {module} as module
calls = []
real = module.{function}
def dying(*a, **k):
    calls.append(a)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*a, **k)
module.{function} = dying
from export import {verb}
from training.command import cli
cli({verb}.main, {arguments!r})
"""
MOMENTS = [("shutil", "copy", 1), ("shutil", "copy", 3), ("pathlib.Path", "rename", 1), ("pathlib.Path", "rename", 2)]


def dies(verb, arguments, module, function, call):
    """Run a verb in a process of its own that is killed at that call."""
    if module == "pathlib.Path":
        module_line = DIES.replace("import {module} as module", "from pathlib import Path as module")
    else:
        module_line = DIES
    code = module_line.format(module=module, function=function, call=call, verb=verb, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["another", "itself"])
@pytest.mark.parametrize(("module", "function", "call"), MOMENTS)
def test_a_bundle_killed_midway_is_the_old_one_or_the_new_one(tiny, tmp_path, module, function, call, source):
    """Twice at the same moment; the next run finds one of the two where it belongs, and succeeds."""
    out = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    old = load_bundle(out).key
    read = tiny.bundle if source == "another" else out
    arguments = [str(read), "--name", "renamed", "--out", str(out)]
    for _ in range(2):
        assert dies("bundle", arguments, module, function, call).returncode == -9
    check_place(out)
    there = load_bundle(out)
    assert there.key == old or there.manifest["name"] == "renamed"
    finished(read, out, "renamed")
    assert load_bundle(out).manifest["name"] == "renamed"
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".hbaf-work-")}
    assert left == {"bundle"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
@pytest.mark.parametrize("verb", [["export.half"], ["export.quantize", "--weights-only"], ["export.bundle"]])
def test_a_full_disk_is_said_in_a_line_and_leaves_nothing(tiny, tmp_path, verb):
    """Files may have so many bytes and no more: what the kernel then says is what it says of a full disk."""
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    start = f"sys.argv[1:] = sys.argv[2:]; runpy.run_module({verb[0]!r}, run_name='__main__')"
    command = [sys.executable, "-c", limit + start, "x", str(tiny.bundle), *verb[1:], "--out", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "make room, or give --out a place on another disk" in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["copy", "json", "card", "rename", "zip"])
def test_a_write_that_fails_leaves_the_old_bundle_and_no_litter(tiny, tmp_path, monkeypatch, place):
    out = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    old = load_bundle(out).key

    def full(*a, **k):
        raise OSError(28, "No space left on device")

    target = {"copy": "shutil.copy", "json": "export.bundle.json.dumps", "card": "export.bundle.model_card",
              "zip": "zipfile.ZipFile.write"}.get(place)  # fmt: skip
    if place == "rename":
        real = Path.rename
        monkeypatch.setattr(Path, "rename", lambda a, b: full() if a.name.endswith("-partial") else real(a, b))
    else:
        monkeypatch.setattr(target, full)
    with pytest.raises(OSError, match="No space left"):
        finished(tiny.bundle, out, "renamed", zipped=place == "zip")
    monkeypatch.undo()
    assert load_bundle(out).key == old or place == "zip"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_zip_does_not_replace_a_folder(tiny, tmp_path):
    (tmp_path / "out.hbaf").mkdir()
    with pytest.raises(InputError, match="is a folder, and the zip would stand there; nothing was replaced"):
        module.finished(tiny.bundle, tmp_path / "out", zipped=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out.hbaf"}


@pytest.mark.slow
def test_quantising_killed_midway_leaves_no_bundle(tiny, tmp_path):
    arguments = [str(tiny.bundle), "--weights-only", "--out", str(tmp_path / "int8")]
    assert dies("quantize", arguments, "shutil", "copy", 4).returncode == -9
    assert not (tmp_path / "int8").exists()
    run = subprocess.run([sys.executable, "-m", "export.quantize", *arguments], cwd=ROOT, capture_output=True)
    assert run.returncode == 0
    assert load_bundle(tmp_path / "int8").manifest["precision"] == "int8-weights"
    assert not list(tmp_path.glob("*.partial"))
