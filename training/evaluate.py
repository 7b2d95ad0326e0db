"""Score a checkpoint: temperatures from dev, then the test splits, with intervals and by gender.

    python -m training.evaluate runs/default/whole                # on what it was trained for
    python -m training.evaluate runs/default/whole --stress       # and on harder versions of it
    python -m training.evaluate runs/mine --on manifest:new.jsonl --use text

Scores and temperatures go into the checkpoint's config.json and into CHECKPOINT/evaluation/scores.json; the last line
of output is JSON. Test is read, never tuned to. A model that sees future turns is labelled bidirectional wherever its
scores stand.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hbaf_edge.card import NOTICE
from training import checkpoint, corpora
from training.command import cli
from training.config import NEUTRAL, ModelConfig, PairConfig, TrainConfig, Use
from training.corpora import plain
from training.corpora.records import UNLABELLED, Corpus, CorpusError, Dialogue, Utterance
from training.distributed import Compute
from training.files import write_json
from training.learner import Learner, check_kind, load_learner
from training.material import Material
from training.metrics import FIRST, fit_temperature, intervals, least_ece, scores
from training.pairs import WORTH_SAYING
from training.stages import Predicted, load_corpus, score

FOREIGN_TURNS = 100


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
    skip: str = "",
) -> dict[str, Any]:
    """Temperatures and scores of a checkpoint; kept beside it and, on its own corpora, in it."""
    about, model = checkpoint.describe(folder)
    config = settings(about)
    config = replace(config, skip=skip or config.skip)
    learner = load_learner(folder, device)
    material = Material(learner, config, cached=False)
    corpus = own_corpus(config, model, on)
    dev, tests = trials(config, corpus, use)
    temperatures = _temperatures(learner, material, dev)
    where = folder / "evaluation" / (corpus.name if corpus is not None and on else "")
    if stressed:
        tests |= stressed_trials(tests)
    found = {}
    for name, trial in tests.items():
        shown = name if model.causal else f"{name}, bidirectional"
        predicted = score(learner, material, trial.dialogues, trial.use)
        found[shown] = judged(predicted, temperatures, model.labels)
    result = {"temperatures": temperatures, "scores": found, "note": NOTICE}
    write_json(where / "scores.json", result, indent=1)
    if on is None and use is None:
        checkpoint.amend(folder, temperatures=temperatures, scores=found)
    return result


def settings(about: dict[str, Any]) -> TrainConfig:
    """The config a checkpoint was trained with, as far as scoring needs it."""
    stored = about.get("train", {})
    names = ("corpus", "pair", "use", "fold", "skip")
    clips = tuple(stored.get("pairs", {}).get("clips", PairConfig().clips))
    return TrainConfig(**{name: stored[name] for name in names if name in stored}, pairs=PairConfig(clips=clips))


def judged(found: Predicted, temperatures: dict[Use, float], labels: Sequence[str]) -> dict[str, Any]:
    """All scores of one set of predictions, every turn calibrated by what it showed, as the runtime does it."""
    scaled = _scaled(found, temperatures)
    result = scores(scaled, found.labels, labels)
    result["ece_before_scaling"] = scores(found.logits, found.labels, labels)["ece"]
    result["least_ece"] = least_ece(scaled)
    result["interval_95"] = intervals(scaled, found.labels, [turn.dialogue for turn in found.turns])
    by_gender = {}
    genders = [turn.utterance.gender for turn in found.turns]
    for gender in sorted({g for g in genders if g}):
        part = found.chosen([g == gender for g in genders])
        kept = scores(_scaled(part, temperatures), part.labels, labels)
        by_gender[gender] = {k: kept[k] for k in ("utterances", *FIRST, "ece")}
    return result | ({"by_gender": by_gender} if by_gender else {})


def _scaled(found: Predicted, temperatures: dict[Use, float]) -> torch.Tensor:
    return found.logits / torch.tensor([temperatures[kind] for kind in found.shown])[:, None]


def _temperatures(learner: Learner, material: Material, dev: dict[Use, Trial]) -> dict[Use, float]:
    """One temperature per modality combination, on the dev turns that show just that."""
    fitted: dict[Use, float] = {}
    for kind, trial in dev.items():
        found = score(learner, material, trial.dialogues, trial.use)
        same = found.chosen([shown == kind for shown in found.shown])
        if same.turns:
            fitted[kind] = round(fit_temperature(same.logits, same.labels), 3)
    # A combination that dev does not show is trusted no more than the least certain one it does.
    kinds: tuple[Use, ...] = ("audio", "text", "audio+text")
    return {kind: fitted.get(kind, max(fitted.values(), default=1.0)) for kind in kinds}


def own_corpus(config: TrainConfig, model: ModelConfig, on: str | None = None) -> Corpus | None:
    """The corpus that a checkpoint is scored on, found fit for it; None: the default recipe has sets of its own."""
    if config.pair and on is None:
        return None
    own = load_corpus(replace(config, corpus=on, fold=None, skip="") if on else config, model.labels, needed=("dev",))
    check_kind(own, model)
    return own


def trials(
    config: TrainConfig, own: Corpus | None, use: Use | None = None
) -> tuple[dict[Use, Trial], dict[str, Trial]]:
    """Dev sets by modality combination, and test sets by name; without a corpus those of the default recipe."""
    if own is None:
        parts = {kind: trial for kind, trial in dev_sets(config).items() if use in (None, kind)}
        return parts, {name: trial for name, trial in held_out().items() if use in (None, trial.use)}
    kinds: list[Use] = [use or config.use]
    if kinds == ["audio+text"]:
        kinds += [k for k in ("text", "audio") if k in own.modalities("dev")]
    dev = {k: Trial(k, own.split("dev")) for k in kinds}
    on = own.scored_split
    return dev, {f"{own.name} {on}, {k}": Trial(k, own.split(on)) for k in kinds}


def dev_sets(config: TrainConfig) -> dict[Use, Trial]:
    """What the default recipe's temperatures are fitted on: words, clips, and clips that have words."""
    words = corpora.load(config.corpus).split("dev")
    clips = next((c for name in config.pairs.clips if (c := corpora.load(name).split("dev"))), [])
    spoken = [d for d in clips if any(t.text for t in d.turns)]
    found: dict[Use, list[Dialogue]] = {"text": words, "audio": clips, "audio+text": spoken}
    return {kind: Trial(kind, dialogues) for kind, dialogues in found.items() if dialogues}


def held_out() -> dict[str, Trial]:
    """The default recipe's test splits by name. Absent data are said."""
    wanted: dict[str, tuple[Use, str]] = {
        "meld_test_text": ("text", "meld"),
        "ravdess_17_20_audio": ("audio", "ravdess"),
    }
    found = {}
    for name, (use, corpus) in wanted.items():
        try:
            found[name] = Trial(use, corpora.load(corpus).split("test"))
        except CorpusError as error:
            Console(stderr=True).print(f"[yellow]{name} is not scored[/]: {error}", highlight=False)
    return found


def stressed_trials(tests: dict[str, Trial]) -> dict[str, Trial]:
    """Test sets made harder: what a robot meets and a corpus does not hold.

    Foreign talk before each dialogue asks whether a full window of somebody else's conversation does harm; a
    misleading partner, whether relevance and gate reject what says nothing.
    """
    train = corpora.load("meld").split("train")
    sentences = [u.text for d in train for u in d.turns if u.label == NEUTRAL and len(u.text) > WORTH_SAYING]
    found = {}
    for name, trial in tests.items():
        if trial.use == "text":
            found[f"{name}, after 100 foreign turns"] = Trial("text", after_foreign_talk(trial.dialogues, train))
            noisy = beside(trial.dialogues, "audio", plain.unheard_noise())
            found[f"{name}, noise beside"] = Trial("audio+text", noisy)
        if trial.use == "audio":
            spoken = beside(trial.dialogues, "text", sentences)
            found[f"{name}, neutral sentence beside"] = Trial("audio+text", spoken)
    return found


def after_foreign_talk(
    dialogues: Sequence[Dialogue], others: Sequence[Dialogue], turns: int = FOREIGN_TURNS, seed: int = 0
) -> list[Dialogue]:
    """Each dialogue behind `turns` turns of other dialogues by other speakers, which are context and not scored.

    >>> talk = Dialogue("talk", "test", (Utterance("Hello.", 0, "anna"),))
    >>> (found,) = after_foreign_talk([talk], [Dialogue("x", "train", (Utterance("What?", 1, "anna"),))], turns=3)
    >>> [(t.text, t.label, t.speaker) for t in found.turns][-2:]
    [('What?', -1, 'x/anna'), ('Hello.', 0, 'anna')]
    """
    rng = random.Random(seed)
    found = []
    for dialogue in dialogues:
        before: list[Utterance] = []
        while len(before) < turns:
            other = rng.choice(others)
            before += [
                replace(u, label=UNLABELLED, speaker=u.speaker and f"{other.name}/{u.speaker}") for u in other.turns
            ]
        found.append(replace(dialogue, turns=(*before[-turns:], *dialogue.turns)))
    return found


def beside(dialogues: Sequence[Dialogue], field: str, choices: Sequence[Any], seed: int = 0) -> list[Dialogue]:
    """Turns whose `field`, audio or text, is drawn from choices that say nothing of their label."""
    rng = random.Random(seed)

    def changed(u: Utterance) -> Utterance:
        return replace(u, **{field: rng.choice(choices)})

    return [replace(d, turns=tuple(changed(u) for u in d.turns)) for d in dialogues]


def table(found: dict[str, Any]) -> Table:
    """Scores for people, with 95 % intervals, and the ECE that so few utterances show at least."""
    shown = Table(
        "scored on", "utterances", "weighted F1", "macro F1", "UAR", "ECE (unscaled; at least)", caption=NOTICE
    )
    for name, s in found.items():
        cells = [f"{s[k]:.3f} [{s['interval_95'][k][0]:.3f}, {s['interval_95'][k][1]:.3f}]" for k in
                 ("weighted_f1", "macro_f1", "uar")]  # fmt: skip
        shown.add_row(
            name, str(s["utterances"]), *cells, f"{s['ece']:.3f} ({s['ece_before_scaling']:.3f}; {s['least_ece']:.3f})"
        )
        for gender, g in s.get("by_gender", {}).items():
            parts = [f"{g[k]:.3f}" for k in ("weighted_f1", "macro_f1", "uar", "ece")]
            shown.add_row(f"  gender {gender}", str(g["utterances"]), *parts)
    return shown


def main(
    folder: Path,
    /,
    on: str | None = None,
    use: Use | None = None,
    skip: str = "",
    stress: bool = False,
    compute: Compute = Compute(),
) -> None:
    """Score.

    Args:
        folder: checkpoint that training.train wrote.
        on: corpus to score on in place of its own; it has to have a dev split too, for the temperature.
        use: modalities shown; None takes those it was trained with.
        skip: skip list of training.check.
        stress: also behind 100 turns of foreign talk and beside misleading partners.
        compute: device and threads.
    """
    result = evaluate(folder, on, use, stress, compute.start(), skip)
    Console().print(table(result["scores"]))
    print(json.dumps(result))


if __name__ == "__main__":
    cli(main)
