"""Fit one temperature per modality combination on dev, then read the test splits once.

    python -m training.evaluate runs/default

MELD test is text only, official split, causal; RAVDESS test is audio only, actors 17-20, calm counted as neutral. Both
go into the checkpoint's config.json and to standard output (the last line is JSON).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hbaf_edge.audio import load_audio
from hbaf_edge.features import Tokeniser, log_mel, normalise_text
from training import batches, checkpoint, encoders
from training.batches import Turn
from training.corpora import clips, meld
from training.corpora.records import Dialogue
from training.metrics import fit_temperature, scores
from training.model import HBAF, Batch
from training.stages import predict, tokeniser_of


class Encoded:
    """Dialogues as batches of encoder states, computed as they are needed; `use` says which modalities are shown."""

    def __init__(self, model: HBAF, text: Any, audio: Any, tokeniser: Tokeniser | None = None) -> None:
        self.config, self.text, self.audio = model.config, text, audio
        self.tokeniser = tokeniser or tokeniser_of()

    @torch.inference_mode()
    def batches(self, dialogues: Sequence[Dialogue], use: str, size: int = 8) -> Iterator[Batch]:
        c = self.config
        for group in batches.groups(dialogues, size):
            made = [[self._turn(u, s, use) for u, s in batches.alone(d)] for d in group]
            yield batches.collate(made, (c.audio_states, c.audio_dim), (c.text_states, c.text_dim))

    def _turn(self, u: Any, speaker: str | None, use: str) -> Turn:
        words = sound = None
        if "text" in use and u.text:
            ids, _ = self.tokeniser(normalise_text(u.text))
            tokens = torch.from_numpy(ids)[None]
            words = encoders.text_states(self.text, tokens, torch.ones_like(tokens, dtype=torch.bool))[0].numpy()
        if "audio" in use and u.audio:
            mel = torch.from_numpy(log_mel(load_audio(u.audio).samples))
            sound = encoders.audio_states(self.audio, mel[None])[0].numpy()
        return Turn(u.label, speaker, words, sound)


def evaluate(folder: Path) -> dict[str, Any]:
    """Temperatures on dev, scores on test; stored in the checkpoint."""
    model, text, _ = checkpoint.load(folder)
    data = Encoded(model, text, encoders.load_audio())
    ravdess = clips.load_ravdess()
    names = model.config.labels

    def logits(dialogues: Sequence[Dialogue], use: str) -> tuple[Tensor, Tensor]:
        return predict(model, data.batches(dialogues, use))

    # The only clips at hand with words of their own are RAVDESS' two fixed sentences; A+T is fitted on them.
    dev = [d for d in ravdess if d.split == "dev"]
    fitted = {"text": (meld.load("dev"), "text"), "audio": (dev, "audio"), "audio+text": (dev, "audio+text")}
    temperatures = {}
    for kind, (dialogues, use) in fitted.items():
        temperatures[kind] = round(fit_temperature(*logits(dialogues, use)), 3)
    held_out = {
        "meld_test_text": (meld.load("test"), "text"),
        "ravdess_17_20_audio": ([d for d in ravdess if d.split == "test"], "audio"),
    }
    found: dict[str, Any] = {}
    for name, (dialogues, use) in held_out.items():
        raw, labels = logits(dialogues, use)
        found[name] = scores(raw / temperatures[use], labels, names)
        found[name]["ece_before_scaling"] = scores(raw, labels, names)["ece"]
    result = {"temperatures": temperatures, "scores": found}
    checkpoint.amend(folder, **result)
    return result


def table(found: dict[str, Any]) -> Table:
    """Scores for people."""
    shown = Table("held out", "utterances", "weighted F1", "macro F1", "UAR", "ECE")
    for name, s in found.items():
        shown.add_row(name, str(s["utterances"]), *(f"{s[k]:.4f}" for k in ("weighted_f1", "macro_f1", "uar", "ece")))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    result = evaluate(given.checkpoint)
    Console().print(table(result["scores"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
