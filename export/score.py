"""What a bundle scores when the runtime itself runs it, and how often its labels differ from a reference bundle's.

    python -m export.score runs/int8-bundle --reference runs/float32-bundle

MELD test turn by turn, text only; RAVDESS actors 17-20, audio only; needs the corpora of DATA.md. Last line JSON.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track

from export.compare import Outcome, drift, judged
from export.conversations import talk
from hbaf_edge import HBAFRuntime, Prediction
from training.command import cli
from training.corpora.records import UNLABELLED, Dialogue
from training.evaluate import Trial, held_out


def judged_turns(runtime: HBAFRuntime, trial: Trial, what: str) -> tuple[list[Prediction], list[int]]:
    """Every labelled turn that shows something, each dialogue its own conversation; and their labels."""
    found, labels = [], []
    for dialogue in track([_shown(d, trial.use) for d in trial.dialogues], description=what):
        for u, prediction in zip(dialogue.turns, talk(runtime, dialogue), strict=True):
            if u.label != UNLABELLED:
                found.append(prediction)
                labels.append(u.label)
    return found, labels


def _shown(dialogue: Dialogue, use: str) -> Dialogue:
    """Without the modalities that are not used, and without turns of which then nothing is left."""
    turns = (
        replace(u, text=u.text if "text" in use else "", audio=u.audio if "audio" in use else None)
        for u in dialogue.turns
    )
    return replace(dialogue, turns=tuple(u for u in turns if u.text or u.audio))


def score(bundle: Path, tests: dict[str, Trial], reference: Path | None = None, threads: int = 2) -> dict[str, Any]:
    """Scores on the test sets, and with a reference flips, differences and cosines against it."""
    result: dict[str, Any] = {}
    runtime = HBAFRuntime(bundle, threads=threads)
    other = HBAFRuntime(reference, threads=threads) if reference else None
    ours: list[Prediction] = []
    theirs: list[Prediction] = []
    for name, trial in tests.items():
        found, labels = judged_turns(runtime, trial, name)
        result[name] = judged(Outcome.of(found), labels, runtime.labels)
        if other:
            ours += found
            theirs += judged_turns(other, trial, f"{name}, reference")[0]
    if other:
        result["against_float32"] = drift(ours, theirs)
    return result


def main(bundle: Path, /, reference: Path | None = None) -> None:
    """Score.

    Args:
        bundle: folder or .hbaf file.
        reference: float32 bundle of the same checkpoint.
    """
    tests = held_out()
    print(json.dumps(score(bundle, tests, reference)))


if __name__ == "__main__":
    cli(main)
