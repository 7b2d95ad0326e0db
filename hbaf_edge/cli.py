"""The command `hbaf-edge`: predict, info and demo. Bad input ends in exit code 2 and one clear message."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape

from hbaf_edge import __version__
from hbaf_edge.bench.command import advise, benchmark, compare
from hbaf_edge.bundle import load_bundle
from hbaf_edge.card import NOTICE, describe
from hbaf_edge.display import turn_bars, turns_table
from hbaf_edge.errors import HBAFError, InputError
from hbaf_edge.runtime import HBAFRuntime

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
EXAMPLE = Path(__file__).parent / "examples" / "conversation.jsonl"
FIELDS = ("audio", "text", "speaker")

BundleOption = Annotated[Optional[Path], typer.Option("--bundle", help="folder or .hbaf file; default: the built-in")]
ThreadsOption = Annotated[Optional[int], typer.Option("--threads", help="CPU threads; default two")]


def _version(asked: bool) -> None:
    if asked:
        print(f"hbaf-edge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """Emotion recognition in conversations from audio and text, on this machine alone."""


@app.command()
def predict(
    dialogue: Annotated[
        Optional[Path], typer.Argument(help="JSON Lines: audio, text, speaker per line; '-' reads standard input")
    ] = None,
    audio: Annotated[Optional[Path], typer.Option(help="one audio file instead of a dialogue")] = None,
    text: Annotated[Optional[str], typer.Option(help="what was said in it")] = None,
    speaker: Annotated[Optional[str], typer.Option(help="who said it")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per turn, for machines")] = False,
    min_confidence: Annotated[float, typer.Option(help="below it the label is left out")] = 0.0,
    bundle: BundleOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Emotion of every turn of a dialogue file, or of one utterance."""
    if (dialogue is None) == (audio is None and text is None):
        raise InputError("give either a dialogue file (JSON Lines), or --audio and/or --text for one utterance")
    if dialogue is None:
        turns: list[dict[str, Any]] = [{"audio": audio, "text": text, "speaker": speaker}]
    else:
        turns = list(read_dialogue(dialogue))
    runtime = HBAFRuntime(bundle, threads=threads, min_confidence=min_confidence)
    chat, found = runtime.conversation(), []
    for turn in turns:
        try:
            p = runtime.predict(turn["audio"], text=turn["text"], speaker=turn["speaker"], conversation=chat)
        except InputError as error:
            raise InputError(f"{dialogue}, line {turn['line']}: {error}" if dialogue else str(error)) from None
        found.append(p)
        if as_json:
            print(json.dumps(p.to_json(), ensure_ascii=False), flush=True)
    if not as_json:
        console = Console()
        console.print(turns_table(found, [turn["text"] for turn in turns]))
        for p in found:
            for warning in p.warnings:
                console.print(f"turn {p.turn}: {warning}", style="dim", markup=False)
        console.print(NOTICE, style="dim")


@app.command()
def info(
    bundle: Annotated[Optional[Path], typer.Argument(help="folder or .hbaf file; default: the built-in")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the whole manifest")] = False,
) -> None:
    """The model card of a bundle, after every hash in it was checked."""
    loaded = load_bundle(bundle)
    if as_json:
        print(json.dumps(loaded.manifest, indent=1))
        return
    console = Console()
    size = loaded.megabytes
    console.print(f"[bold]{escape(loaded.path)}[/], {len(loaded.files)} files, {size:.1f} MB, every SHA-256 right")
    for line in describe(loaded.manifest):
        console.print(f"  {line}", markup=False)
    for entry in loaded.manifest.get("data", []):
        console.print(f"  data: {entry['name']}, {entry['licence']}: {entry['use']}", markup=False)
    for limit in loaded.manifest.get("limits", []):
        console.print(f"  limit: {limit}", markup=False)


@app.command()
def demo(bundle: BundleOption = None, threads: ThreadsOption = None) -> None:
    """The example conversation, turn by turn, with bars for the probabilities."""
    console = Console()
    runtime = HBAFRuntime(bundle, threads=threads)
    console.print(repr(runtime), style="dim", markup=False, highlight=False)
    chat, times = runtime.conversation(), []
    for turn in read_dialogue(EXAMPLE):
        p = runtime.predict(turn["audio"], text=turn["text"], speaker=turn["speaker"], conversation=chat)
        times.append(p.timing["total"])
        console.print()
        console.print(turn_bars(p, turn["text"]))
    middle = sorted(times)[len(times) // 2]
    console.print(f"\n{chat.turn} turns, {middle:.0f} ms for a turn (median), {chat.nbytes / 1024:.0f} KiB of state.")
    console.print(NOTICE, style="dim")


app.command()(benchmark)
app.command()(compare)
app.command()(advise)


def read_dialogue(path: Path) -> Iterator[dict[str, Any]]:
    """Turns of a JSON Lines file with their line numbers; audio paths are taken from the file's own folder."""
    if str(path) == "-":
        lines, folder = sys.stdin.read().split("\n"), Path()
    elif path.is_file():
        lines, folder = _text(path).split("\n"), path.parent
    else:
        raise InputError(f"there is no dialogue file {str(path)!r}; JSON Lines with {', '.join(FIELDS)} are expected")
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"{path} holds no turns; JSON Lines with {', '.join(FIELDS)} are expected")
    for number, line in numbered:
        yield {**_turn(line, f"{path}, line {number}", folder), "line": number}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark of its encoding
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a UTF-8 text file; JSON Lines with {', '.join(FIELDS)} are expected") from None


def _turn(line: str, where: str, folder: Path) -> dict[str, Any]:
    try:
        turn = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); one object per line is expected") from None
    if not isinstance(turn, dict) or set(turn) - set(FIELDS):
        found = sorted(set(turn) - set(FIELDS)) if isinstance(turn, dict) else type(turn).__name__
        raise InputError(f"{where} has {found}; an object with {', '.join(FIELDS)} is expected")
    for field in FIELDS:
        if not isinstance(turn.get(field), (str, type(None))):
            raise InputError(f"{where}: {field} is {turn[field]!r}; a string or null is expected")
    audio = turn.get("audio")
    return {"audio": folder / audio if audio else None, "text": turn.get("text"), "speaker": turn.get("speaker")}


def main() -> None:
    """Entry point: runs the command; an error of ours or of the system becomes one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter gets its number
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except BrokenPipeError:
        raise
    except (HBAFError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
