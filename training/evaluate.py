"""Evaluate a checkpoint: fit temperatures on dev, then score it, with intervals and by gender.

    python -m training.evaluate runs/default/whole                # on dev of the corpora it was trained for
    python -m training.evaluate runs/default/whole --stress       # and on harder versions of them
    python -m training.evaluate runs/mine --on manifest:new.jsonl --use text
    python -m training.evaluate runs/default/whole --final        # on test: once, at the end (training/ledger.py)

Scores and temperatures are stored in the checkpoint's config.json and in CHECKPOINT/evaluation/scores.json. Dev data
selected the model and its temperatures, so scores on dev are a little too good; they are for choosing. With --final,
the folder can also be one with several seeds and folds of training.train. A model that uses future turns is labelled
bidirectional in all tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hbaf_edge.card import NOTICE
from training import checkpoint, corpora, ledger
from training.command import cli, emit
from training.config import ModelConfig, PairConfig, TrainConfig, Use
from training.corpora.records import Corpus, CorpusError, Dialogue, EvaluationSet, digest
from training.distributed import Compute
from training.errors import TrainingError
from training.feature_provider import FeatureProvider
from training.files import write_json
from training.metrics import MAIN_SCORES, bootstrap_intervals, ece_floor, fit_temperature, scores
from training.stress import stress_sets
from training.tasks import Predictions, load_corpus, predict_labelled
from training.train import pooled_scores, predictions_on_dev, summarise_seeds
from training.train import table as runs_table
from training.training_module import check_inputs, load_training_module

USES: tuple[Use, ...] = ("audio", "text", "audio+text")


def evaluate(
    folder: Path,
    on: str | None = None,
    use: Use | None = None,
    stressed: bool = False,
    device: torch.device | str = "cpu",
    skip: str = "",
    final: bool = False,
) -> dict[str, Any]:
    """Fit the temperatures of a checkpoint and score it. Results on its own corpora are stored in the checkpoint.

    Args:
        folder: checkpoint.
        on: another corpus to score on.
        use: modalities; None uses those of training.
        stressed: also score the harder versions of the sets.
        device: where to compute.
        skip: skip list of training.check.
        final: score the test splits instead of dev, and enter the scores in the ledger.

    Returns:
        temperatures by modalities, scores by set, and a note.
    """
    about, model = checkpoint.describe(folder)
    config = scoring_config(about)
    config = replace(config, skip=skip or config.skip)
    module = load_training_module(folder, device)
    features = FeatureProvider(module, config, cached=False)
    corpus = scoring_corpus(config, model, on)
    dev = dev_sets(config, corpus, use)
    on_dev = {name: predict_labelled(module, features, one.dialogues, one.use) for name, one in dev.items()}
    temperatures = _temperatures([(dev[name].use, predictions) for name, predictions in on_dev.items()])

    def score(sets: dict[str, EvaluationSet]) -> dict[str, Any]:
        results = {}
        for name, one in sets.items():
            predictions = on_dev.get(name) or predict_labelled(module, features, one.dialogues, one.use)
            shown_name = name if model.causal else f"{name}, bidirectional"
            results[shown_name] = score_predictions(predictions, temperatures, model.labels)
        return results

    if final:
        tests = final_sets(config, corpus, use)
        data = {name: digest(one.dialogues) for name, one in tests.items()}
        key = weights_hash([folder])
        results = ledger.score_once(folder.name, key, data, lambda names: score({n: tests[n] for n in names}))
    else:
        results = score(dev | (stress_sets(dev) if stressed else {}))
    result = {"temperatures": temperatures, "scores": results, "note": NOTICE}
    out = folder / "evaluation" / (corpus.name if corpus is not None and on else "")
    write_json(out / ("final.json" if final else "scores.json"), result, indent=1)
    if on is None and use is None and not final:
        checkpoint.update_about(folder, temperatures=temperatures, scores=results)
    return result


def final_of_runs(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Score the test folds of all runs of a training.train command, pooled per seed, and enter them in the ledger.

    Args:
        folder: with the summary.json of the command.
        device: where to compute.

    Returns:
        mean and standard deviation of each score over seeds, and the scores of each seed.
    """
    summary = json.loads((folder / "summary.json").read_text())
    folders = [folder / Path(name).name if len(summary["folders"]) > 1 else folder for name in summary["folders"]]
    configs = [scoring_config(checkpoint.describe(run)[0]) for run in folders]
    corpora_of_runs = [load_corpus(config) for config in configs]
    tests = [corpus.final_test() for corpus in corpora_of_runs]

    def score() -> dict[str, Any]:
        runs = []
        for start in range(0, len(folders), summary["folds"]):
            predictions = []
            for i in range(start, start + summary["folds"]):
                module = load_training_module(folders[i], device)
                features = FeatureProvider(module, configs[i], cached=False)
                test = predict_labelled(module, features, tests[i], configs[i].use)
                temperature = predictions_on_dev(configs[i], folders[i], device)["temperature"]
                predictions.append({"logits": test.logits, "labels": test.labels, "temperature": temperature})
            runs.append(pooled_scores(predictions, corpora_of_runs[start].labels))
        return summarise_seeds(runs)

    name = f"{corpora_of_runs[0].name} test, {configs[0].use}, {summary['folds']} folds, {len(summary['seeds'])} seeds"
    data = {name: digest([dialogue for test in tests for dialogue in test])}
    return dict(ledger.score_once(folder.name, weights_hash(folders), data, lambda _: {name: score()})[name])


def weights_hash(folders: Sequence[Path]) -> str:
    """SHA-256 of the weights and model configs of checkpoints."""
    sha256 = hashlib.sha256()
    for folder in folders:
        weights = [folder / f"{role}.safetensors" for role in ("hbaf", "text", "audio")]
        encoders = [path for role in ("text", "audio") for path in (folder / f"{role}_encoder").glob("*.safetensors")]
        for path in sorted(path for path in (*weights, *encoders) if path.exists()):
            sha256.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
        sha256.update(json.dumps(checkpoint.describe(folder)[1].to_json(), sort_keys=True).encode())
    return sha256.hexdigest()


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


def _temperatures(on_dev: Sequence[tuple[Use, Predictions]]) -> dict[Use, float]:
    """Fit one temperature per combination of modalities, on the dev turns with exactly this combination."""
    fitted: dict[Use, float] = {}
    for use, predictions in on_dev:
        exact = predictions.select([modalities == use for modalities in predictions.modalities])
        if exact.turns:
            fitted[use] = round(fit_temperature(exact.logits, exact.labels), 3)
    # A combination without dev turns gets the highest temperature, that of the least confident combination.
    return {use: fitted.get(use, max(fitted.values(), default=1.0)) for use in USES}


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


def dev_sets(config: TrainConfig, corpus: Corpus | None, use: Use | None = None) -> dict[str, EvaluationSet]:
    """Dev sets by name. Without a corpus those of the default recipe: text dialogues, clips, and clips with text."""
    if corpus is not None:
        return {f"{corpus.name} dev, {u}": EvaluationSet(u, corpus.split("dev")) for u in _uses(config, corpus, use)}
    text = corpora.load(config.corpus)
    clips = next((c for c in map(corpora.load, config.pairs.clips) if c.split("dev")), None)
    by_use: dict[Use, tuple[Corpus | None, list[Dialogue]]] = {
        "text": (text, text.split("dev")),
        "audio": (clips, clips.split("dev") if clips else []),
        "audio+text": (clips, [d for d in clips.split("dev") if any(t.text for t in d.turns)] if clips else []),
    }
    return {
        f"{source.name} dev, {u}": EvaluationSet(u, dialogues)
        for u, (source, dialogues) in by_use.items() if source and dialogues and use in (None, u)
    }  # fmt: skip


def final_sets(config: TrainConfig, corpus: Corpus | None, use: Use | None = None) -> dict[str, EvaluationSet]:
    """Test sets by name, for the ledger. Without a corpus, MELD's text and RAVDESS' audio, as far as they are here.

    Raises:
        TrainingError: there are no labelled test turns.
    """
    tests: dict[str, EvaluationSet] = {}
    if corpus is not None:
        for u in _uses(config, corpus, use):
            tests[f"{corpus.name} test, {u}"] = EvaluationSet(u, corpus.final_test())
    else:
        sources: tuple[tuple[str, Use], ...] = (("meld", "text"), ("ravdess", "audio"))
        for name, u in sources:
            try:
                tests |= {f"{name} test, {u}": EvaluationSet(u, corpora.load(name).final_test())}
            except CorpusError as error:
                Console(stderr=True).print(f"[yellow]{name} is not scored[/]: {error}", highlight=False)
        tests = {name: one for name, one in tests.items() if use in (None, one.use)}
    if not any(t.label >= 0 for one in tests.values() for d in one.dialogues for t in d.turns):
        raise TrainingError("there are no labelled test turns; without --final, dev is scored")
    return tests


def _uses(config: TrainConfig, corpus: Corpus, use: Use | None) -> list[Use]:
    """The modalities to score: those asked for, or those of training and each of them by itself."""
    uses: list[Use] = [use or config.use]
    if uses == ["audio+text"]:
        uses += [u for u in ("text", "audio") if u in corpus.modalities("dev")]
    return uses


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
    final: bool = False,
    compute: Compute = Compute(),
    json_output: bool = False,
) -> None:
    """Evaluate a checkpoint.

    Args:
        folder: checkpoint written by training.train; with --final also a folder of several runs.
        on: corpus to score on instead of its own; it needs a dev split for the temperature.
        use: modalities to use; None uses those of training.
        skip: skip list of training.check.
        stress: also score after 100 turns of another conversation and with mismatched modalities.
        final: score test instead of dev, and enter the scores in the ledger.
        compute: device and threads.
    """
    device = compute.start()
    if final and stress:
        raise TrainingError("--stress is for choosing and makes harder versions of dev; give it without --final")
    if final and not (folder / "config.json").exists() and (folder / "summary.json").exists():
        if on or use or skip:
            raise TrainingError(f"{folder} holds several runs; --on, --use and --skip are for a single checkpoint")
        result = final_of_runs(folder, device)
        emit(result, json_output, runs_table({str(folder): result | {"scored_on": "test"}}))
        return
    result = evaluate(folder, on, use, stress, device, skip, final)
    emit(result, json_output, table(result["scores"]))


if __name__ == "__main__":
    cli(main)
