"""Score a checkpoint: temperatures from dev, then the test splits, with intervals, by gender, and as pictures.

    python -m training.evaluate runs/default                      # on what it was trained for
    python -m training.evaluate runs/default --stress             # and on harder versions of it
    python -m training.evaluate runs/mine --on manifest:new.jsonl --use text

Scores and temperatures go into the checkpoint's config.json, everything into CHECKPOINT/evaluation (scores.json and a
PNG for each set); the last line of output is JSON. Test is read, never tuned to. A model that sees future turns is
labelled bidirectional wherever its scores stand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from training import checkpoint, corpora, distributed, stress
from training.command import cli
from training.config import NEUTRAL, TrainConfig, Use
from training.corpora import dailytalk, emogator, meld, plain, ravdess
from training.corpora.records import Corpus, Dialogue
from training.learner import Learner
from training.material import Material
from training.metrics import FIRST, fit_temperature, intervals, scores
from training.pictures import draw
from training.protocol import load_learner
from training.stages import Predicted, load_corpus, score

NOTE = "An estimate of the emotion expressed, not of what a person feels."


@dataclass(frozen=True)
class Trial:
    """Dialogues to score, and with which modalities."""

    use: Use
    dialogues: list[Dialogue]


def evaluate(
    folder: Path,
    on: str | None = None,
    use: Use | None = None,
    stressed: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Temperatures and scores of a checkpoint; stored in it, drawn beside it."""
    about, model = checkpoint.describe(folder)
    config = settings(about)
    learner = load_learner(folder, device)
    # Every clip and sentence is met once or twice: no cache.
    material = Material(learner, replace(config, text_tuning="full", audio_tuning="full"))
    dev, tests = trials(config, model.labels, on, use)
    temperatures = {kind: _temperature(learner, material, trial) for kind, trial in dev.items()}
    # Without clips that have words of their own, the two together are trusted no more than the less certain one.
    temperatures.setdefault("audio+text", max(temperatures.values()))
    if stressed:
        tests |= stressed_trials(tests)
    found = {}
    for name, trial in tests.items():
        shown = name if model.causal else f"{name}, bidirectional"
        predicted = score(learner, material, trial.dialogues, trial.use)
        found[shown] = judged(predicted, temperatures.get(trial.use, 1.0), model.labels)
        scaled = predicted.logits / temperatures.get(trial.use, 1.0)
        picture = folder / "evaluation" / f"{shown.replace(' ', '_').replace(',', '')}.png"
        draw(scaled, predicted.labels, model.labels, found[shown], shown, picture)
    result = {"temperatures": temperatures, "scores": found, "note": NOTE}
    (folder / "evaluation" / "scores.json").write_text(json.dumps(result, indent=1))
    if on is None:
        checkpoint.amend(folder, temperatures=temperatures, scores=found)
    return result


def settings(about: dict[str, Any]) -> TrainConfig:
    """The config a checkpoint was trained with, as far as scoring needs it."""
    stored = about.get("train", {})
    names = ("corpus", "pair", "use", "fold", "skip")
    return TrainConfig(**{name: stored[name] for name in names if name in stored})


def judged(found: Predicted, temperature: float, labels: Sequence[str]) -> dict[str, Any]:
    """All scores of one set of predictions."""
    scaled = found.logits / temperature
    result = scores(scaled, found.labels, labels)
    result["ece_before_scaling"] = scores(found.logits, found.labels, labels)["ece"]
    result["temperature"] = temperature
    result["interval_95"] = intervals(scaled, found.labels, found.dialogues)
    by_gender = {}
    for gender in sorted({u.gender for u in found.utterances if u.gender}):
        part = found.chosen([u.gender == gender for u in found.utterances])
        kept = scores(part.logits / temperature, part.labels, labels)
        by_gender[gender] = {k: kept[k] for k in ("utterances", *FIRST, "ece")}
    return result | ({"by_gender": by_gender} if by_gender else {})


def _temperature(learner: Learner, material: Material, trial: Trial) -> float:
    dev = score(learner, material, trial.dialogues, trial.use)
    return round(fit_temperature(dev.logits, dev.labels), 3)


def trials(
    config: TrainConfig, labels: tuple[str, ...], on: str | None = None, use: Use | None = None
) -> tuple[dict[Use, Trial], dict[str, Trial]]:
    """Dev sets by modality combination, and test sets by name."""
    if config.pair and on is None:
        parts = {kind: Trial(kind, d) for kind, d in dev_sets(config).items()}
        return parts, {name: Trial(*pair) for name, pair in held_out().items()}
    own = load_corpus(replace(config, corpus=on, fold=None, skip="") if on else config, labels)
    kinds: list[Use] = [use or config.use]
    if kinds == ["audio+text"]:
        kinds += [k for k in ("text", "audio") if _has(own, k)]
    dev = {k: Trial(k, own.split("dev")) for k in kinds}
    test = own.split("test") or own.split("dev")
    return dev, {f"{own.name} {test[0].split}, {k}": Trial(k, test) for k in kinds}


def _has(corpus: Corpus, kind: Use) -> bool:
    turns = [t for d in corpus.split("dev") for t in d.turns]
    return any(t.vectors or (t.text if kind == "text" else t.audio) for t in turns)


def dev_sets(config: TrainConfig) -> dict[Use, list[Dialogue]]:
    """What the default recipe's temperatures are fitted on: words, clips, and clips that have words."""
    if config.corpus == "dailytalk":
        return {"text": dailytalk.load().split("dev"), "audio": emogator.load().split("dev")}
    dev = ravdess.load().split("dev")
    return {"text": corpora.load(config.corpus).split("dev"), "audio": dev, "audio+text": dev}


def held_out() -> dict[str, tuple[Use, list[Dialogue]]]:
    """The default recipe's test splits by name: which modality is shown, and the dialogues."""
    return {
        "meld_test_text": ("text", meld.load().split("test")),
        "ravdess_17_20_audio": ("audio", ravdess.load().split("test")),
    }


def stressed_trials(tests: dict[str, Trial]) -> dict[str, Trial]:
    """Each test set behind foreign talk where it is text, and with a misleading partner."""
    train = meld.load().split("train")
    sentences = [u.text for d in train for u in d.turns if u.label == NEUTRAL and len(u.text) > 12]
    noise = [u.audio for u in plain.load(sentences) if u.audio and u.audio.stem.startswith("noise")]
    found = {}
    for name, trial in tests.items():
        if trial.use == "text":
            found[f"{name}, after 100 foreign turns"] = Trial("text", stress.after_foreign_talk(trial.dialogues, train))
            found[f"{name}, noise beside"] = Trial("audio+text", stress.beside_noise(trial.dialogues, noise))
        if trial.use == "audio":
            beside = stress.beside_sentence(trial.dialogues, sentences)
            found[f"{name}, neutral sentence beside"] = Trial("audio+text", beside)
    return found


def table(found: dict[str, Any]) -> Table:
    """Scores for people, with 95 % intervals."""
    shown = Table("scored on", "utterances", "weighted F1", "macro F1", "UAR", "ECE (unscaled)", caption=NOTE)
    for name, s in found.items():
        cells = [f"{s[k]:.3f} [{s['interval_95'][k][0]:.3f}, {s['interval_95'][k][1]:.3f}]" for k in
                 ("weighted_f1", "macro_f1", "uar")]  # fmt: skip
        shown.add_row(name, str(s["utterances"]), *cells, f"{s['ece']:.3f} ({s['ece_before_scaling']:.3f})")
        for gender, g in s.get("by_gender", {}).items():
            parts = [f"{g[k]:.3f}" for k in ("weighted_f1", "macro_f1", "uar", "ece")]
            shown.add_row(f"  gender {gender}", str(g["utterances"]), *parts)
    return shown


def main(
    folder: Path,
    /,
    on: str | None = None,
    use: Use | None = None,
    stress: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Score.

    Args:
        folder: checkpoint that training.train wrote.
        on: corpus to score on in place of its own; it has to have a dev split too, for the temperature.
        use: modalities shown; None takes those it was trained with.
        stress: also behind 100 turns of foreign talk and beside misleading partners.
        threads: CPU threads; None leaves torch's choice.
        device: cpu, cuda, or auto.
    """
    if threads:
        torch.set_num_threads(threads)
    result = evaluate(folder, on, use, stress, distributed.start(device))
    Console().print(table(result["scores"]))
    print(json.dumps(result))


if __name__ == "__main__":
    cli(main, __doc__)
