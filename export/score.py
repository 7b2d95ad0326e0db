"""What a bundle scores when the runtime itself runs it, and how often its labels differ from a reference bundle's.

    python -m export.score runs/int8-bundle --reference runs/float32-bundle

MELD test turn by turn, text only; RAVDESS actors 17-20, audio only; needs the corpora of DATA.md. Last line JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from export.command import run
from export.compare import drift
from hbaf_edge import HBAFRuntime, Prediction
from hbaf_edge.audio import SAMPLE_RATE, load_audio
from training.corpora.records import UNLABELLED
from training.evaluate import Trial, held_out
from training.metrics import scores


def judged_turns(runtime: HBAFRuntime, trial: Trial, what: str) -> tuple[list[Prediction], list[int]]:
    """Every turn of every dialogue that shows something, each dialogue its own conversation; and their labels."""
    found, labels = [], []
    for dialogue in track(trial.dialogues, description=what):
        chat = runtime.conversation()
        for u in dialogue.turns:
            text = u.text if "text" in trial.use else None
            sound = load_audio(u.audio).samples if u.audio and "audio" in trial.use else None
            if not text and sound is None:
                continue
            rate = SAMPLE_RATE if sound is not None else None
            p = runtime.predict(sound, text=text, speaker=u.speaker, conversation=chat, sample_rate=rate)
            if u.label != UNLABELLED:
                found.append(p)
                labels.append(u.label)
    return found, labels


def score(bundle: Path, tests: dict[str, Trial], reference: Path | None = None, threads: int = 2) -> dict[str, Any]:
    """Scores on the test sets, and with a reference flips, differences and cosines against it."""
    result: dict[str, Any] = {}
    runtime = HBAFRuntime(bundle, threads=threads)
    other = HBAFRuntime(reference, threads=threads) if reference else None
    ours: list[Prediction] = []
    theirs: list[Prediction] = []
    for name, trial in tests.items():
        found, labels = judged_turns(runtime, trial, name)
        logits = torch.tensor([list(p.probabilities.values()) for p in found]).log()
        result[name] = scores(logits, torch.tensor(labels), runtime.labels)
        if other:
            ours += found
            theirs += judged_turns(other, trial, f"{name}, reference")[0]
    if other:
        result["against_float32"] = drift(ours, theirs)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--reference", type=Path, help="float32 bundle of the same checkpoint")
    given = parser.parse_args()
    tests = {name: Trial(*pair) for name, pair in held_out().items()}
    print(json.dumps(score(given.bundle, tests, given.reference)))


if __name__ == "__main__":
    run(main)
