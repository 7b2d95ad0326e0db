"""Command lines: options from signatures and dataclasses, error messages, exit codes and output."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from hbaf_edge.errors import HBAFError
from tests.conftest import ROOT
from training import ablate, check, encoders, evaluate, finetune, from_bundle, probe, train
from training.command import cli, emit, options_of
from training.config import ModelConfig, TrainConfig

calls = []


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
        folder: the first argument,
            explained on two lines.
        out: the output.
    """
    calls.append((folder, others, out, config, seeds, folds, threads, restart))


def test_options_have_defaults_and_set_values():
    cli(main, ["a", "b", "c", "--out", "d"])
    assert calls.pop() == (Path("a"), (Path("b"), Path("c")), Path("d"), TrainConfig(), (), "own", None, False)
    line = "a b --out d --seeds 0 1 2 --clips tess emogator --no-augment --pair --smoothing 0.1 --folds all --restart"
    cli(main, [*line.split(), "--also", "dailytalk@0.1", "--threads", "2", "--use", "text", "--fold", "3"])
    *_, config, seeds, folds, threads, restart = calls.pop()
    assert (seeds, folds, threads, restart) == ((0, 1, 2), "all", 2, True)
    assert config.pairs.clips == ("tess", "emogator")
    assert (config.also, config.use, config.fold) == (("dailytalk@0.1",), "text", 3)
    assert (config.augment, config.pair, config.loss.smoothing, config.loss.balance) == (False, True, 0.1, 0.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a b", "Missing option '--out'"),
        ("a b --out d --use video", "'video' is not one of"),
        ("a b --out d --epochs many", "Invalid value for '--epochs'"),
        ("a b --out d --wings 2", "No such option: --wings"),
    ],
)
def test_wrong_command_line_exits_with_2(line, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli(main, line.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_docstrings_and_comments(capsys):
    cli(main, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "the first argument, explained on two lines." in text
    assert "share of all steps [default: 0.1]" in text, "the comment of a field"
    assert "Command lines: options from signatures" in text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HBAFError("unknown thing; give another"), "unknown thing; give another"),
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), "x.json: No space left on device; make room"),
        (FileNotFoundError("x is missing; set HBAF_DATA"), "x is missing; set HBAF_DATA"),
    ],
)
def test_error_ends_in_one_line(monkeypatch, error, message):
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit, match=message):
        cli(fails, [])


def test_options_have_different_names():
    for command in (train, ablate, probe):
        names = [option.name for option in options_of(command.main)]
        assert len(names) == len(set(names))
        assert {f for f in TrainConfig.__dataclass_fields__ if f not in ("pairs", "loss")} <= set(names)
        assert set(ModelConfig.__dataclass_fields__) <= set(names)


def prints(json_output: bool = False) -> None:
    """Command with output."""
    emit({"score": 0.5}, json_output, "score 0.5")


def test_output_is_json_only_with_the_json_option(capsys):
    cli(prints, [])
    assert capsys.readouterr().out == "score 0.5\n"
    cli(prints, ["--json"])
    assert capsys.readouterr().out == '{"score": 0.5}\n'


@pytest.mark.parametrize("command", [ablate, check, encoders, evaluate, finetune, from_bundle, probe, train])
def test_every_command_has_the_json_option(command, capsys):
    cli(command.main, ["--help"])
    assert "--json" in capsys.readouterr().out


def test_modules_can_be_imported_without_typer():
    """The tests of kernels and engines run on GPU machines without typer."""
    code = (
        "import sys; sys.modules['typer'] = None; "
        "import export.graphs, export.float16, export.qdq, export.gate_function, training.config, training.layers"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
