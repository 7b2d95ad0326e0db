"""A WAV in chunks of 20 ms, as a microphone gives them: an estimate while it is spoken, and one when it is over.

    python -m hbaf_edge.examples.stream hello.wav --text "You did it!"      # in real time
    python -m hbaf_edge.examples.stream hello.wav --late "You did it!"      # words half a second later
    python -m hbaf_edge.examples.stream --fast                              # an example, not waiting

On a robot, `turn.feed` stands in the microphone's callback; all else stays as it is here.
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
SHOWN = 0.5  # seconds between two provisional estimates
EXAMPLE = Path(__file__).parent / "turn4_anna.flac"
SAID = "But it means I have to leave all of you. I'm going to miss you so much."


def speak(turn: LiveTurn, sound: soundfile.SoundFile, fast: bool) -> None:
    """Feed the whole file, showing what it seems to express on the way."""
    start, shown = time.perf_counter(), 0.0
    for chunk in sound.blocks(int(CHUNK * sound.samplerate), dtype="float32"):
        turn.feed(chunk, sound.samplerate)
        if turn.seconds >= shown + SHOWN:
            shown = turn.seconds
            try:
                show(f"{shown:4.1f} s ", turn.provisional())
            except InputError as nothing:  # silence so far
                print(f"{shown:4.1f} s  {nothing}")
        if not fast:
            time.sleep(max(0.0, start + turn.seconds - time.perf_counter()))


def show(when: str, p: Prediction) -> None:
    """One line."""
    print(f"{when} {p.label or '—':9} {p.confidence:.2f}  {'+'.join(p.modalities):10} {p.timing['total']:4.0f} ms")


def main(
    path: Annotated[Path, typer.Argument(help="WAV, FLAC, OGG or MP3")] = EXAMPLE,
    text: Annotated[str | None, typer.Option(help="what is said, known when it is over")] = None,
    late: Annotated[str | None, typer.Option(help="what is said, known half a second later")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="do not wait as long as it was spoken")] = False,
) -> None:
    """Stream one utterance."""
    runtime = HBAFRuntime()
    runtime.warmup()
    chat = runtime.conversation()
    runtime.observe(text="How was your day?", conversation=chat)  # the robot's own words are context
    try:
        sound = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"{path} cannot be read as audio ({error})") from None
    with sound:
        turn = runtime.begin(speaker="visitor", conversation=chat)
        speak(turn, sound, fast)
    show("over   ", turn.finish(text=text or (SAID if path == EXAMPLE and not late else None)))
    if late:
        time.sleep(0 if fast else 0.5)
        show("revised", turn.revise(late))
    print(NOTICE)


if __name__ == "__main__":
    try:
        typer.run(main)
    except HBAFError as error:
        raise SystemExit(f"error: {error}") from None
