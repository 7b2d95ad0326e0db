"""Emotion recognition in conversations from audio and text, on your own machine."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from hbaf_edge import __version__
from hbaf_edge.answers import Answer, predict_dialogues
from hbaf_edge.audio import load_chunk
from hbaf_edge.bench.command import advise, benchmark, compare
from hbaf_edge.bundle import load_bundle
from hbaf_edge.card import NOTICE, describe
from hbaf_edge.dialogue_file import STDIN, Utterance, check_file, find_source, standard_input
from hbaf_edge.dialogue_file import read_dialogue as read_dialogue
from hbaf_edge.display import AnswerPrinter, screen, show_error, show_line, turn_bars
from hbaf_edge.errors import HBAFError, InputError
from hbaf_edge.runtime import HBAFRuntime

NAME = "hbaf-edge"
FAILED, UNUSABLE, INTERRUPTED, TERMINATED, PIPE_CLOSED = 1, 2, 130, 143, 141  # the last three as shells use them
EXIT_CODES = (
    "Exit codes: 0 every turn was predicted; 1 some turns could not be predicted; 2 the command could not start "
    "(option, file, bundle or provider), or the first error with --strict; 130 interrupted."
)
EXAMPLE = Path(__file__).parent / "examples" / "conversation.jsonl"

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False, rich_markup_mode=None)

BundleOption = Annotated[Optional[Path], typer.Option("--bundle", help="folder or .hbaf file; default: built-in model")]
ThreadsOption = Annotated[Optional[int], typer.Option("--threads", help="CPU threads; default: two")]
ProviderOption = Annotated[
    str, typer.Option("--provider", help="where the model runs: cpu, ort-cuda, ort-tensorrt, cuda, tensorrt or auto")
]


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog=EXIT_CODES)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Emotion recognition in conversations from audio and text, on your own machine."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(UNUSABLE)


@app.command(epilog=EXIT_CODES, short_help="Predict the emotion of every turn, or of one utterance.")
def predict(
    files: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="dialogues (.jsonl: one object with audio, text and speaker per line) and audio files, each a "
            "separate conversation; '-' is a dialogue on standard input"
        ),
    ] = None,
    audio: Annotated[Optional[str], typer.Option(help="one utterance: its audio file, '-' for standard input")] = None,
    text: Annotated[Optional[str], typer.Option(help="one utterance: its transcript")] = None,
    speaker: Annotated[Optional[str], typer.Option(help="the speaker; with files, of turns without one")] = None,
    conversation: Annotated[bool, typer.Option("--conversation", help="all files belong to one conversation")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per turn")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first turn that cannot be predicted")] = False,
    min_confidence: Annotated[float, typer.Option(help="no label below this confidence")] = 0.0,
    sample_rate: Annotated[Optional[int], typer.Option(help="sample rate of raw audio in Hz")] = None,
    sample_format: Annotated[
        Optional[str], typer.Option(help="format of raw audio, such as s16le, f32le, u8, mulaw or alaw")
    ] = None,
    bundle: BundleOption = None,
    threads: ThreadsOption = None,
    provider: ProviderOption = "cpu",
) -> None:
    """Predict the emotion of every turn of dialogues and audio files, or of one utterance.

    Each turn is printed at once. A turn that cannot be predicted gets a null label and an error, and the dialogue
    continues. Other fields of a line (id, start, ...) are repeated in its JSON answer. Fields with the same name as a
    key of the answer, such as a reference "label", are under "input".
    """
    if bool(files) == (audio is not None or text is not None):
        raise InputError("pass either files (dialogues, audio), or --audio and/or --text for one utterance")
    if sample_format is not None and sample_rate is None:
        raise InputError(f"--sample-format {sample_format} needs --sample-rate, in Hz: raw audio does not contain it")
    if sample_rate is not None or sample_format is not None:  # validate them with an empty chunk
        load_chunk(b"" if sample_format is not None else np.zeros(0, np.float32), sample_rate, sample_format)
    sources = [find_source(name, is_raw=sample_format is not None) for name in files or []]
    dialogues = [source.utterances() for source in sources] if files else [[_utterance(audio, text)]]
    with HBAFRuntime(bundle, threads=threads, provider=provider, min_confidence=min_confidence) as runtime:
        results = predict_dialogues(
            runtime, dialogues, speaker=speaker, is_one_conversation=conversation,
            sample_rate=sample_rate, sample_format=sample_format,
        )  # fmt: skip
        code = show_all(results, AnswerPrinter(as_json, has_headings=len(sources) > 1), strict)
    raise typer.Exit(code)


@app.command(short_help="Show the model card of a bundle.")
def info(
    bundle: Annotated[Optional[Path], typer.Argument(help="folder or .hbaf file; default: built-in model")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the complete manifest")] = False,
) -> None:
    """Verify a bundle and show its model card."""
    loaded = load_bundle(bundle)
    if as_json:
        print(json.dumps(loaded.manifest, indent=1))
        return
    console, size = screen(), loaded.megabytes
    show_line(console, f"{loaded.path}, {len(loaded.files)} files, {size:.1f} MB, every SHA-256 is correct", "bold")
    for line in describe(loaded.manifest):
        show_line(console, f"  {line}")
    for entry in loaded.manifest.get("data", []):
        show_line(console, f"  data: {entry['name']}, {entry['licence']}: {entry['use']}")
    for limit in loaded.manifest.get("limits", []):
        show_line(console, f"  limit: {limit}")


@app.command(short_help="Run the example conversation.")
def demo(bundle: BundleOption = None, threads: ThreadsOption = None, provider: ProviderOption = "cpu") -> None:
    """Run the example conversation turn by turn, with bars for the probabilities."""
    console = screen()
    runtime = HBAFRuntime(bundle, threads=threads, provider=provider)
    for line in repr(runtime).splitlines():
        show_line(console, line, "dim")
    conversation, times = runtime.conversation(), []
    for turn in read_dialogue(EXAMPLE):
        p = runtime.predict(turn["audio"], text=turn["text"], speaker=turn["speaker"], conversation=conversation)
        times.append(p.timing["total"])
        console.print()
        console.print(turn_bars(p, turn["text"]))
    median, state_kib = sorted(times)[len(times) // 2], conversation.nbytes / 1024
    console.print(f"\n{conversation.turn} turns, {median:.0f} ms per turn (median), {state_kib:.0f} KiB of state.")
    show_line(console, NOTICE, "dim")


app.command(short_help="Measure what a turn costs on this machine.")(benchmark)
app.command(short_help="Compare two benchmark reports.")(compare)
app.command(short_help="Recommend a bundle and settings within limits.")(advise)


def _utterance(audio: str | None, text: str | None) -> Utterance:
    """The utterance of the options --audio and --text."""
    if audio is not None and audio != STDIN:
        check_file(audio, "audio")
    return Utterance(audio, audio=standard_input() if audio == STDIN else audio, text=text)


def show_all(results: Iterable[Answer], printer: AnswerPrinter, is_strict: bool) -> int:
    """Print answers as they arrive and return the exit code.

    Raises:
        InputError: a turn could not be predicted and `is_strict` is True.
    """
    turns = failed = 0
    for answer in results:
        if is_strict and answer.error is not None:
            raise InputError(answer.utterance.located_error(answer.error))
        printer.show(answer)
        turns += answer.utterance.is_turn
        failed += answer.error is not None
    printer.finish()
    return (FAILED if turns else UNUSABLE) if failed else 0


def _terminate(number: int, frame: object) -> None:
    """Handle SIGTERM: exit in the normal way, so that files are closed."""
    sys.exit(TERMINATED)


def _exit_code() -> int:
    """Run the command and return its exit code. Expected errors are printed as one line."""
    usage_error: Any = typer.BadParameter.__base__  # typer's own copy of click, or click's, depending on its version
    try:
        code = app(prog_name=NAME, standalone_mode=False)  # None, or the code of typer.Exit and of Ctrl-C
        sys.stdout.flush()
    except usage_error as error:
        command = error.ctx.command_path if error.ctx else NAME
        show_error(f"{error.format_message()} (see {command} --help)")
        return UNUSABLE
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich and typer turn it into SystemExit
            return PIPE_CLOSED
        raise
    except BrokenPipeError:
        return PIPE_CLOSED
    except (HBAFError, OSError) as error:
        show_error(error)
        return UNUSABLE
    return int(code or 0)


def _discard_unwritten_output() -> None:
    """Discard output for a closed pipe. Python would otherwise try to write it again at exit and print an error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line. `EXIT_CODES` describes the exit codes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):  # write escapes for characters that the encoding lacks
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _exit_code()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        _discard_unwritten_output()
    sys.exit(code)
