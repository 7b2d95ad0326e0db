"""Evaluate a checkpoint: fit temperatures on dev, then score the test splits, with intervals and by gender.

    python -m training.evaluate runs/default/whole                # on the corpora it was trained for
    python -m training.evaluate runs/default/whole --stress       # and on harder versions of them
    python -m training.evaluate runs/mine --on manifest:new.jsonl --use text

Scores and temperatures are stored in the checkpoint's config.json and in CHECKPOINT/evaluation/scores.json. Nothing is
selected on test. A model that uses future turns is labelled bidirectional in all tables.
"""

from __future__ import annotations

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
from training.command import cli, emit
from training.config import NEUTRAL, ModelConfig, PairConfig, TrainConfig, Use
from training.corpora import uninformative
from training.corpora.records import UNLABELLED, Corpus, CorpusError, Dialogue, Utterance
from training.distributed import Compute
from training.feature_provider import FeatureProvider
from training.files import write_json
from training.metrics import MAIN_SCORES, bootstrap_intervals, ece_floor, fit_temperature, scores
from training.pairs import MIN_SENTENCE_LENGTH
from training.tasks import Predictions, load_corpus, predict_labelled
from training.training_module import TrainingModule, check_inputs, load_training_module

FOREIGN_TURNS = 100


@dataclass(frozen=True)
class EvaluationSet:
    """Dialogues to score, and the modalities to use."""

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
    """Fit the temperatures of a checkpoint and score it. Results on its own corpora are stored in the checkpoint.

    Args:
        folder: checkpoint.
        on: another corpus to score on.
        use: modalities; None uses those of training.
        stressed: also score the harder versions of the test sets.
        device: where to compute.
        skip: skip list of training.check.

    Returns:
        temperatures by modalities, scores by test set, and a note.
    """
    about, model = checkpoint.describe(folder)
    config = scoring_config(about)
    config = replace(config, skip=skip or config.skip)
    module = load_training_module(folder, device)
    features = FeatureProvider(module, config, cached=False)
    corpus = scoring_corpus(config, model, on)
    dev, tests = evaluation_sets(config, corpus, use)
    temperatures = _temperatures(module, features, dev)
    out = folder / "evaluation" / (corpus.name if corpus is not None and on else "")
    if stressed:
        tests |= stress_sets(tests)
    results = {}
    for name, test in tests.items():
        shown_name = name if model.causal else f"{name}, bidirectional"
        predictions = predict_labelled(module, features, test.dialogues, test.use)
        results[shown_name] = score_predictions(predictions, temperatures, model.labels)
    result = {"temperatures": temperatures, "scores": results, "note": NOTICE}
    write_json(out / "scores.json", result, indent=1)
    if on is None and use is None:
        checkpoint.update_about(folder, temperatures=temperatures, scores=results)
    return result


def scoring_config(about: dict[str, Any]) -> TrainConfig:
    """The settings of a checkpoint's training that matter for scoring."""
    stored = about.get("train", {})
    names = ("corpus", "pair", "use", "fold", "skip")
    clips = tuple(stored.get("pairs", {}).get("clips", PairConfig().clips))
    return TrainConfig(**{name: stored[name] for name in names if name in stored}, pairs=PairConfig(clips=clips))


def score_predictions(
    predictions: Predictions, temperatures: dict[Use, float], labels: Sequence[str]
) -> dict[str, Any]:
    """All scores of a set of predictions. Turns are calibrated by their modalities, as in the runtime."""
    scaled = _scaled_logits(predictions, temperatures)
    result = scores(scaled, predictions.labels, labels)
    result["ece_before_scaling"] = scores(predictions.logits, predictions.labels, labels)["ece"]
    result["least_ece"] = ece_floor(scaled)
    dialogues = [turn.dialogue for turn in predictions.turns]
    result["interval_95"] = bootstrap_intervals(scaled, predictions.labels, dialogues)
    by_gender = {}
    genders = [turn.utterance.gender for turn in predictions.turns]
    for gender in sorted({g for g in genders if g}):
        part = predictions.select([g == gender for g in genders])
        part_scores = scores(_scaled_logits(part, temperatures), part.labels, labels)
        by_gender[gender] = {k: part_scores[k] for k in ("utterances", *MAIN_SCORES, "ece")}
    return result | ({"by_gender": by_gender} if by_gender else {})


def _scaled_logits(predictions: Predictions, temperatures: dict[Use, float]) -> torch.Tensor:
    return predictions.logits / torch.tensor([temperatures[use] for use in predictions.modalities])[:, None]


def _temperatures(module: TrainingModule, features: FeatureProvider, dev: dict[Use, EvaluationSet]) -> dict[Use, float]:
    """Fit one temperature per combination of modalities, on the dev turns with exactly this combination."""
    fitted: dict[Use, float] = {}
    for use, dev_set in dev.items():
        predictions = predict_labelled(module, features, dev_set.dialogues, dev_set.use)
        exact = predictions.select([modalities == use for modalities in predictions.modalities])
        if exact.turns:
            fitted[use] = round(fit_temperature(exact.logits, exact.labels), 3)
    # A combination without dev turns gets the highest temperature, that of the least confident combination.
    uses: tuple[Use, ...] = ("audio", "text", "audio+text")
    return {use: fitted.get(use, max(fitted.values(), default=1.0)) for use in uses}


def scoring_corpus(config: TrainConfig, model: ModelConfig, on: str | None = None) -> Corpus | None:
    """Load the corpus to score a checkpoint on; None for the default recipe, which has several evaluation sets.

    Raises:
        CorpusError, TrainingError: the corpus does not fit the model.
    """
    if config.pair and on is None:
        return None
    settings = replace(config, corpus=on, fold=None, skip="") if on else config
    corpus = load_corpus(settings, model.labels, needed=("dev",))
    check_inputs(corpus, model)
    return corpus


def evaluation_sets(
    config: TrainConfig, corpus: Corpus | None, use: Use | None = None
) -> tuple[dict[Use, EvaluationSet], dict[str, EvaluationSet]]:
    """Dev sets by modalities, and test sets by name. Without a corpus, those of the default recipe."""
    if corpus is None:
        dev = {dev_use: dev_set for dev_use, dev_set in default_dev_sets(config).items() if use in (None, dev_use)}
        return dev, {name: test for name, test in default_test_sets().items() if use in (None, test.use)}
    uses: list[Use] = [use or config.use]
    if uses == ["audio+text"]:
        uses += [u for u in ("text", "audio") if u in corpus.modalities("dev")]
    dev = {u: EvaluationSet(u, corpus.split("dev")) for u in uses}
    split = corpus.scored_split
    return dev, {f"{corpus.name} {split}, {u}": EvaluationSet(u, corpus.split(split)) for u in uses}


def default_dev_sets(config: TrainConfig) -> dict[Use, EvaluationSet]:
    """Dev sets of the default recipe: text dialogues, clips, and clips with text."""
    text = corpora.load(config.corpus).split("dev")
    clips = next((c for name in config.pairs.clips if (c := corpora.load(name).split("dev"))), [])
    clips_with_text = [d for d in clips if any(t.text for t in d.turns)]
    by_use: dict[Use, list[Dialogue]] = {"text": text, "audio": clips, "audio+text": clips_with_text}
    return {use: EvaluationSet(use, dialogues) for use, dialogues in by_use.items() if dialogues}


def default_test_sets() -> dict[str, EvaluationSet]:
    """Test sets of the default recipe by name. Missing corpora are reported and left out."""
    corpora_of_sets: dict[str, tuple[Use, str]] = {
        "meld_test_text": ("text", "meld"),
        "ravdess_17_20_audio": ("audio", "ravdess"),
    }
    tests = {}
    for name, (use, corpus) in corpora_of_sets.items():
        try:
            tests[name] = EvaluationSet(use, corpora.load(corpus).split("test"))
        except CorpusError as error:
            Console(stderr=True).print(f"[yellow]{name} is not scored[/]: {error}", highlight=False)
    return tests


def stress_sets(tests: dict[str, EvaluationSet]) -> dict[str, EvaluationSet]:
    """Harder versions of the test sets, as a robot meets them.

    Foreign turns before each dialogue test whether a window full of another conversation does harm. A mismatched
    modality tests whether relevance and gate reject it.
    """
    train = corpora.load("meld").split("train")
    sentences = [u.text for d in train for u in d.turns if u.label == NEUTRAL and len(u.text) > MIN_SENTENCE_LENGTH]
    harder = {}
    for name, test in tests.items():
        if test.use == "text":
            after_foreign = with_foreign_history(test.dialogues, train)
            harder[f"{name}, after 100 foreign turns"] = EvaluationSet("text", after_foreign)
            with_noise = with_random(test.dialogues, "audio", uninformative.unseen_noise())
            harder[f"{name}, noise beside"] = EvaluationSet("audio+text", with_noise)
        if test.use == "audio":
            with_sentence = with_random(test.dialogues, "text", sentences)
            harder[f"{name}, neutral sentence beside"] = EvaluationSet("audio+text", with_sentence)
    return harder


def with_foreign_history(
    dialogues: Sequence[Dialogue], others: Sequence[Dialogue], turns: int = FOREIGN_TURNS, seed: int = 0
) -> list[Dialogue]:
    """Put unlabelled turns of other dialogues, with other speakers, before each dialogue.

    >>> dialogue = Dialogue("d", "test", (Utterance("Hello.", 0, "anna"),))
    >>> other = Dialogue("x", "train", (Utterance("What?", 1, "anna"),))
    >>> (longer,) = with_foreign_history([dialogue], [other], turns=3)
    >>> [(t.text, t.label, t.speaker) for t in longer.turns][-2:]
    [('What?', -1, 'x/anna'), ('Hello.', 0, 'anna')]
    """
    rng = random.Random(seed)
    longer = []
    for dialogue in dialogues:
        before: list[Utterance] = []
        while len(before) < turns:
            other = rng.choice(others)
            before += [
                replace(u, label=UNLABELLED, speaker=u.speaker and f"{other.name}/{u.speaker}") for u in other.turns
            ]
        longer.append(replace(dialogue, turns=(*before[-turns:], *dialogue.turns)))
    return longer


def with_random(dialogues: Sequence[Dialogue], field: str, choices: Sequence[Any], seed: int = 0) -> list[Dialogue]:
    """Replace the `field` (audio or text) of every turn by a random choice."""
    rng = random.Random(seed)

    def changed(u: Utterance) -> Utterance:
        return replace(u, **{field: rng.choice(choices)})

    return [replace(d, turns=tuple(changed(u) for u in d.turns)) for d in dialogues]


def table(results: dict[str, Any]) -> Table:
    """Scores with 95 % intervals, and the ECE with its value before scaling and its floor."""
    shown = Table("scored on", "utterances", "weighted F1", "macro F1", "UAR", "ECE (unscaled; floor)", caption=NOTICE)
    for name, s in results.items():
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
    json_output: bool = False,
) -> None:
    """Evaluate a checkpoint.

    Args:
        folder: checkpoint written by training.train.
        on: corpus to score on instead of its own; it needs a dev split for the temperature.
        use: modalities to use; None uses those of training.
        skip: skip list of training.check.
        stress: also score after 100 turns of another conversation and with mismatched modalities.
        compute: device and threads.
    """
    result = evaluate(folder, on, use, stress, compute.start(), skip)
    emit(result, json_output, table(result["scores"]))


if __name__ == "__main__":
    cli(main)
