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

from hbaf_edge.audio import load_audio
from hbaf_edge.features import Tokeniser, log_mel, normalise_text
from training import batches, checkpoint, encoders
from training.batches import Turn
from training.corpora import clips, dailytalk, meld
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
            yield batches.collate(made, (c.audio_states, c.audio_dim), (c.text_states, c.text_dim), c.stack)

    def _turn(self, u: Any, speaker: str | None, use: str) -> Turn:
        words = sound = None
        ids, _ = self.tokeniser(normalise_text(u.text))
        if "text" in use and ids is not None:
            tokens = torch.from_numpy(ids)[None]
            words = encoders.text_states(self.text, tokens, torch.ones_like(tokens, dtype=torch.bool))[0].numpy()
        if "audio" in use and u.audio:
            mel = torch.from_numpy(log_mel(load_audio(u.audio).samples))
            sound = encoders.audio_states(self.audio, mel[None])[0].numpy()
        return Turn(u.label, speaker, words, sound)


def evaluate(folder: Path) -> dict[str, Any]:
    """Temperatures on dev, scores on test; stored in the checkpoint."""
    model, text, about = checkpoint.load(folder)
    data = Encoded(model, text, encoders.load_audio(model.config.audio_encoder))
    names = model.config.labels
    temperatures = {
        kind: round(fit_temperature(*predict(model, data.batches(dialogues, kind))), 3)
        for kind, dialogues in dev_sets(about["train"]["open"]).items()
    }
    # Without clips that have words of their own, the two together are trusted no more than the less certain one.
    temperatures.setdefault("audio+text", max(temperatures.values()))
    found: dict[str, Any] = {}
    for name, (use, dialogues) in held_out().items():
        raw, labels = predict(model, data.batches(dialogues, use))
        found[name] = scores(raw / temperatures[use], labels, names)
        found[name]["ece_before_scaling"] = scores(raw, labels, names)["ece"]
    result = {"temperatures": temperatures, "scores": found}
    checkpoint.amend(folder, **result)
    return result


def dev_sets(is_open: bool) -> dict[str, list[Dialogue]]:
    """What temperatures are fitted on: dev dialogues for words, dev clips for audio, and clips that have words."""
    if is_open:
        return {"text": dailytalk.load("val"), "audio": [d for d in clips.load_emogator() if d.split == "dev"]}
    dev = [d for d in clips.load_ravdess() if d.split == "dev"]
    return {"text": meld.load("dev"), "audio": dev, "audio+text": dev}


def held_out() -> dict[str, tuple[str, list[Dialogue]]]:
    """The test splits by name: which modality is shown, and the dialogues."""
    ravdess = [d for d in clips.load_ravdess() if d.split == "test"]
    return {"meld_test_text": ("text", meld.load("test")), "ravdess_17_20_audio": ("audio", ravdess)}


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
