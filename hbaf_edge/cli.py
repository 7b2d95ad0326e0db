"""Emotion recognition in conversations from audio and text, on this machine alone."""

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
from hbaf_edge.answers import Answer, answers
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
FAILED, UNUSABLE, INTERRUPTED, TERMINATED, PIPE_CLOSED = 1, 2, 130, 143, 141  # the last three as a shell has them
EXIT_CODES = (
    "Exit codes: 0 every turn was judged; 1 some turns could not be judged; 2 nothing could be started (option, file, "
    "bundle or provider), or the first error with --strict; 130 interrupted."
)
EXAMPLE = Path(__file__).parent / "examples" / "conversation.jsonl"

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False, rich_markup_mode=None)

BundleOption = Annotated[Optional[Path], typer.Option("--bundle", help="folder or .hbaf file; default: the built-in")]
ThreadsOption = Annotated[Optional[int], typer.Option("--threads", help="CPU threads; default two")]
ProviderOption = Annotated[
    str, typer.Option("--provider", help="where it runs: cpu, ort-cuda, ort-tensorrt, cuda, tensorrt or auto")
]


def _version(asked: bool) -> None:
    if asked:
        print(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog=EXIT_CODES)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """Emotion recognition in conversations from audio and text, on this machine alone."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(UNUSABLE)


@app.command(epilog=EXIT_CODES, short_help="The emotion of every turn, or of one utterance.")
def predict(
    files: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="dialogues (.jsonl: an object with audio, text and speaker per line) and audio files, each a "
            "conversation of its own; '-' is a dialogue on standard input"
        ),
    ] = None,
    audio: Annotated[Optional[str], typer.Option(help="one utterance: its audio file, '-' for standard input")] = None,
    text: Annotated[Optional[str], typer.Option(help="one utterance: what was said in it")] = None,
    speaker: Annotated[Optional[str], typer.Option(help="who said it; with files, of turns that name nobody")] = None,
    conversation: Annotated[bool, typer.Option("--conversation", help="the files are one conversation")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per turn, for machines")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first turn that cannot be judged")] = False,
    min_confidence: Annotated[float, typer.Option(help="below it the label is left out")] = 0.0,
    sample_rate: Annotated[Optional[int], typer.Option(help="Hz, of raw audio")] = None,
    sample_format: Annotated[
        Optional[str], typer.Option(help="of raw audio, such as s16le, f32le, u8, mulaw or alaw")
    ] = None,
    bundle: BundleOption = None,
    threads: ThreadsOption = None,
    provider: ProviderOption = "cpu",
) -> None:
    """The emotion of every turn of dialogues and audio files, or of one utterance.

    Turns are shown as they are judged. A turn that cannot be judged gets a null label and its reason, and the
    dialogue goes on. Other fields of a line (id, start, ...) are repeated in its JSON answer; those named like the
    answer's own, such as a reference "label", are found under "input".
    """
    if bool(files) == (audio is not None or text is not None):
        raise InputError("give either files (dialogues, audio), or --audio and/or --text for one utterance")
    if sample_format is not None and sample_rate is None:
        raise InputError(f"--sample-format {sample_format} needs --sample-rate, in Hz: raw audio does not say it")
    if sample_rate is not None or sample_format is not None:
        load_chunk(b"" if sample_format is not None else np.zeros(0, np.float32), sample_rate, sample_format)  # checks
    sources = [find_source(name, is_raw=sample_format is not None) for name in files or []]
    dialogues = [source.utterances() for source in sources] if files else [[_utterance(audio, text)]]
    with HBAFRuntime(bundle, threads=threads, provider=provider, min_confidence=min_confidence) as runtime:
        results = answers(
            runtime, dialogues, speaker=speaker, is_one_conversation=conversation,
            sample_rate=sample_rate, sample_format=sample_format,
        )  # fmt: skip
        code = show_all(results, AnswerPrinter(as_json, has_headings=len(sources) > 1), strict)
    raise typer.Exit(code)


@app.command(short_help="The model card of a bundle.")
def info(
    bundle: Annotated[Optional[Path], typer.Argument(help="folder or .hbaf file; default: the built-in")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the whole manifest")] = False,
) -> None:
    """The model card of a bundle, after every hash in it was checked."""
    loaded = load_bundle(bundle)
    if as_json:
        print(json.dumps(loaded.manifest, indent=1))
        return
    console, size = screen(), loaded.megabytes
    show_line(console, f"{loaded.path}, {len(loaded.files)} files, {size:.1f} MB, every SHA-256 right", "bold")
    for line in describe(loaded.manifest):
        show_line(console, f"  {line}")
    for entry in loaded.manifest.get("data", []):
        show_line(console, f"  data: {entry['name']}, {entry['licence']}: {entry['use']}")
    for limit in loaded.manifest.get("limits", []):
        show_line(console, f"  limit: {limit}")


@app.command(short_help="The example conversation, with bars.")
def demo(bundle: BundleOption = None, threads: ThreadsOption = None, provider: ProviderOption = "cpu") -> None:
    """The example conversation, turn by turn, with bars for the probabilities."""
    console = screen()
    runtime = HBAFRuntime(bundle, threads=threads, provider=provider)
    for line in repr(runtime).splitlines():
        show_line(console, line, "dim")
    chat, times = runtime.conversation(), []
    for turn in read_dialogue(EXAMPLE):
        p = runtime.predict(turn["audio"], text=turn["text"], speaker=turn["speaker"], conversation=chat)
        times.append(p.timing["total"])
        console.print()
        console.print(turn_bars(p, turn["text"]))
    middle = sorted(times)[len(times) // 2]
    console.print(f"\n{chat.turn} turns, {middle:.0f} ms for a turn (median), {chat.nbytes / 1024:.0f} KiB of state.")
    show_line(console, NOTICE, "dim")


app.command(short_help="What a turn costs on this machine.")(benchmark)
app.command(short_help="What changed between two reports.")(compare)
app.command(short_help="Which bundle and settings stay within limits.")(advise)


def _utterance(audio: str | None, text: str | None) -> Utterance:
    """The one utterance of --audio and --text."""
    if audio is not None and audio != STDIN:
        check_file(audio, "audio")
    return Utterance(audio, audio=standard_input() if audio == STDIN else audio, text=text)


def show_all(results: Iterable[Answer], printer: AnswerPrinter, strict: bool) -> int:
    """Show answers as they come; returns the exit code.

    Raises:
        InputError: the first turn that could not be judged, where `strict`.
    """
    turns = failed = 0
    for answer in results:
        if strict and answer.error is not None:
            raise InputError(answer.utterance.complaint(answer.error))
        printer.show(answer)
        turns += answer.utterance.is_turn
        failed += answer.error is not None
    printer.finish()
    return (FAILED if turns else UNUSABLE) if failed else 0


def _terminate(number: int, frame: object) -> None:
    """End as if the program were done."""
    sys.exit(TERMINATED)


def _exit_code() -> int:
    """Run the command. An error of ours, of the command line or of the system becomes one line."""
    usage_error: Any = typer.BadParameter.__base__  # typer has its own copy of click, or click's, by its version
    try:
        code = app(prog_name=NAME, standalone_mode=False)  # None, or the code of typer.Exit and of Ctrl-C
        sys.stdout.flush()
    except usage_error as error:
        command = error.ctx.command_path if error.ctx else NAME
        show_error(f"{error.format_message()} (see {command} --help)")
        return UNUSABLE
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich and typer make an exit of it
            return PIPE_CLOSED
        raise
    except BrokenPipeError:
        return PIPE_CLOSED
    except (HBAFError, OSError) as error:
        show_error(error)
        return UNUSABLE
    return int(code or 0)


def _drop_unwritten() -> None:
    """What cannot be written any more would be tried again, and complained about, while Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point; the exit codes are those of `EXIT_CODES`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter gets its number
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _exit_code()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        _drop_unwritten()
    sys.exit(code)
