"""Feed a WAV in chunks of 20 ms, as from a microphone: provisional estimates during the turn, a final one at its end.

    python -m hbaf_edge.examples.stream hello.wav --text "You did it!"      # in real time
    python -m hbaf_edge.examples.stream hello.wav --late "You did it!"      # the transcript is 0.5 s late
    python -m hbaf_edge.examples.stream --fast                              # the example clip, without waiting

On a robot, call `turn.feed` in the microphone's callback; the rest is the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import soundfile
import typer

from hbaf_edge import HBAFRuntime, LiveTurn, Prediction
from hbaf_edge.card import NOTICE
from hbaf_edge.errors import HBAFError, InputError

CHUNK = 0.02  # seconds
INTERVAL = 0.5  # seconds between two provisional estimates
EXAMPLE = Path(__file__).parent / "turn4_anna.flac"
EXAMPLE_TEXT = "But it means I have to leave all of you. I'm going to miss you so much."


def feed_file(turn: LiveTurn, file: soundfile.SoundFile, is_fast: bool) -> None:
    """Feed the file in chunks and print provisional estimates."""
    start, last = time.perf_counter(), 0.0
    for chunk in file.blocks(int(CHUNK * file.samplerate), dtype="float32"):
        turn.feed(chunk, file.samplerate)
        if turn.seconds >= last + INTERVAL:
            last = turn.seconds
            try:
                show(f"{last:4.1f} s ", turn.provisional())
            except InputError as error:  # silence so far
                print(f"{last:4.1f} s  {error}")
        if not is_fast:
            time.sleep(max(0.0, start + turn.seconds - time.perf_counter()))


def show(label: str, p: Prediction) -> None:
    """Print a prediction as one line."""
    print(f"{label} {p.label or '—':9} {p.confidence:.2f}  {'+'.join(p.modalities):10} {p.timing['total']:4.0f} ms")


def main(
    path: Annotated[Path, typer.Argument(help="WAV, FLAC, OGG or MP3")] = EXAMPLE,
    text: Annotated[str | None, typer.Option(help="transcript, known at the end of the turn")] = None,
    late: Annotated[str | None, typer.Option(help="transcript, known half a second later")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="do not wait for real time")] = False,
) -> None:
    """Stream one utterance."""
    runtime = HBAFRuntime()
    runtime.warmup()
    conversation = runtime.conversation()
    runtime.observe(text="How was your day?", conversation=conversation)  # what the robot said is context
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"{path} cannot be read as audio ({error})") from None
    with file:
        turn = runtime.begin(speaker="visitor", conversation=conversation)
        feed_file(turn, file, fast)
    show("final  ", turn.finish(text=text or (EXAMPLE_TEXT if path == EXAMPLE and not late else None)))
    if late:
        time.sleep(0 if fast else 0.5)
        show("revised", turn.revise(late))
    print(NOTICE)


if __name__ == "__main__":
    try:
        typer.run(main)
    except HBAFError as error:
        raise SystemExit(f"error: {error}") from None
