"""Command lines: options of every kind from signatures and dataclasses, and one line and an exit code where it ends."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from hbaf_edge.errors import HBAFError
from tests.conftest import ROOT
from training import ablate, probe, train
from training.command import cli, options_of
from training.config import ModelConfig, TrainConfig

told = []


def main(
    folder: Path,
    others: tuple[Path, ...],
    /,
    out: Path,
    config: TrainConfig = TrainConfig(),
    seeds: tuple[int, ...] = (),
    folds: Literal["own", "all"] = "own",
    threads: int | None = None,
    restart: bool = False,
) -> None:
    """Command.

    Args:
        folder: what stands first,
            and is explained on two lines.
        out: where to.
    """
    told.append((folder, others, out, config, seeds, folds, threads, restart))


def test_everything_can_be_left_out_or_said():
    cli(main, ["a", "b", "c", "--out", "d"])
    assert told.pop() == (Path("a"), (Path("b"), Path("c")), Path("d"), TrainConfig(), (), "own", None, False)
    words = "a b --out d --seeds 0 1 2 --clips tess emogator --no-augment --pair --smoothing 0.1 --folds all --restart"
    cli(main, [*words.split(), "--also", "dailytalk@0.1", "--threads", "2", "--use", "text", "--fold", "3"])
    *_, config, seeds, folds, threads, restart = told.pop()
    assert (seeds, folds, threads, restart) == ((0, 1, 2), "all", 2, True)
    assert config.pairs.clips == ("tess", "emogator")
    assert (config.also, config.use, config.fold) == (("dailytalk@0.1",), "text", 3)
    assert (config.augment, config.pair, config.loss.smoothing, config.loss.balance) == (False, True, 0.1, 0.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a b", "Missing option '--out'"),
        ("a b --out d --use video", "'video' is not one of"),
        ("a b --out d --epochs many", "Invalid value for '--epochs'"),
        ("a b --out d --wings 2", "No such option: --wings"),
    ],
)
def test_a_wrong_command_line_ends_with_2(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli(main, words.split())
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_help_says_what_docstrings_and_comments_say(capsys):
    cli(main, ["--help"])
    found = " ".join(capsys.readouterr().out.split())
    assert "what stands first, and is explained on two lines." in found
    assert "share of all steps [default: 0.1]" in found, "the comment beside a field"
    assert "Command lines: options of every kind" in found


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (HBAFError("no such thing; give another"), "no such thing; give another"),
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), "x.json: No space left on device; make room"),
        (FileNotFoundError("x is missing; set HBAF_DATA"), "x is missing; set HBAF_DATA"),
    ],
)
def test_what_cannot_go_on_ends_in_one_line(monkeypatch, error, said):
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit, match=said):
        cli(fails, [])


def test_no_two_options_share_a_name():
    for command in (train, ablate, probe):
        names = [option.name for option in options_of(command.main)]
        assert len(names) == len(set(names))
        assert {f for f in TrainConfig.__dataclass_fields__ if f not in ("pairs", "loss")} <= set(names)
        assert set(ModelConfig.__dataclass_fields__) <= set(names)


def test_modules_are_imported_without_the_command_line_library():
    """A GPU machine that has no typer collects the tests of kernels and engines."""
    code = (
        "import sys; sys.modules['typer'] = None; "
        "import export.graphs, export.half, export.qdq, export.gate_function, training.config, training.layers"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
