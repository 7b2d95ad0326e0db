"""How well a model hears voices of corpora that it never met, beside a linear model on the same encoder's states.

    python -m training.voices                                        # choosing: each training corpus left out in turn
    python -m training.voices --model hbaf_edge/models/default       # a bundle or checkpoint beside the linear model
    python -m training.voices --final --model hbaf_edge/models/default   # unseen corpora: once, through the ledger

The linear model is logistic regression on the mean and deviation over frames of the frozen encoder's states; every
corpus × label weighs the same. Each clip is judged three times: as a speaker's first turn, after 16 turns of the same
speaker with the labels of everyday conversation, and after 16 turns of the clip's own label. With a history the linear
model sees the clip minus the mean of that history. UAR counts only the labels that the tested corpus has.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from rich.table import Table
from torch import Tensor, nn

from hbaf_edge.bench.document import Cell, cell_text
from hbaf_edge.bundle import load_bundle
from training import checkpoint, corpora, encoders, ledger
from training.caches import AudioCache
from training.command import cli, emit
from training.config import MELD_LABELS, ModelConfig, TrainConfig
from training.corpora.records import UNLABELLED, Dialogue, Utterance, digest
from training.distributed import Compute
from training.evaluate import weights_hash
from training.feature_provider import FeatureProvider
from training.from_bundle import restore
from training.linear import fit
from training.metrics import scores
from training.results import save_report
from training.tasks import predict_labelled
from training.training_module import TrainingModule, load_training_module

History = Literal["first turn", "life-like", "one mood"]
HISTORIES: tuple[History, ...] = get_args(History)
HISTORY_TURNS = 16
# Shares of labels in MELD's training dialogues: what a life-like history is drawn by.
SHARES = {"neutral": 0.47, "joy": 0.17, "surprise": 0.12, "anger": 0.11, "sadness": 0.07, "fear": 0.03, "disgust": 0.03}
CLIPS_PER_SPEAKER = 80
WEIGHT_DECAY = 0.1  # chosen on the sets of `tested_sets`
SHARE = {"emospeech": 0.25}  # noisy single words; at full weight they make every other corpus worse
TEXT = (
    "UAR over the labels that the tested corpus has. Life-like: after 16 turns of the same speaker with MELD's shares "
    "of labels; one mood: after 16 turns of the clip's own label. – : the model was trained on these clips."
)
UNSEEN = ("tess", "turev", "ased", "secap")


class Tested(NamedTuple):
    """Clips to test on, corpora that the linear model trains on, and whether other models may train on these clips."""

    corpus: str
    clips: list[Dialogue]
    trained_on: tuple[str, ...]
    is_training_data: bool = False


class Model(NamedTuple):
    """A model to compare: its name, modules, training corpora, hash of its weights, and key if it is a bundle."""

    name: str
    module: TrainingModule
    corpora: tuple[str, ...]
    sha256: str
    key: str


@dataclass(frozen=True)
class Linear:
    """A linear model: logits = (x - mean) / deviation @ weights + biases."""

    mean: Tensor
    deviation: Tensor
    weights: Tensor
    biases: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(N, features) -> (N, labels)."""
        return (x - self.mean) / self.deviation @ self.weights + self.biases


def sample_clips(dialogues: Sequence[Dialogue], limit: int, seed: int = 0) -> list[Dialogue]:
    """About `limit` clips of whole speakers, at most `CLIPS_PER_SPEAKER` of each; those of unknown speakers last."""
    rng = random.Random(seed)
    by_speaker = _by_speaker(dialogues)
    names = sorted(by_speaker, key=lambda name: (name is None, rng.random()))
    sample: list[Dialogue] = []
    for name in names:
        if len(sample) < limit:
            clips = by_speaker[name]
            sample += rng.sample(clips, min(len(clips), CLIPS_PER_SPEAKER))
    return sample[: max(limit, CLIPS_PER_SPEAKER)]


def _by_speaker(dialogues: Sequence[Dialogue]) -> dict[str | None, list[Dialogue]]:
    groups: dict[str | None, list[Dialogue]] = defaultdict(list)
    for dialogue in dialogues:
        groups[dialogue.turns[0].speaker].append(dialogue)
    return dict(groups)


def with_history(clips: Sequence[Dialogue], kind: History, seed: int = 0) -> list[Dialogue]:
    """Put unlabelled turns of the same speaker before each clip. Clips without any are left out.

    >>> clips = [Dialogue(str(n), "dev", (Utterance("", n % 2, "anna", Path(f"{n}.wav")),)) for n in range(4)]
    >>> [len(d.turns) for d in with_history(clips, "one mood")], len(with_history(clips, "first turn")[0].turns)
    ([17, 17, 17, 17], 1)
    """
    if kind == "first turn":
        return list(clips)
    rng, groups, result = random.Random(seed), _by_speaker(clips), []
    for clip in clips:
        turn = clip.turns[0]
        others = defaultdict(list)
        for other in groups[turn.speaker] if turn.speaker is not None else ():
            if other is not clip:
                others[other.turns[0].label].append(other.turns[0])
        labels = [turn.label] if kind == "one mood" and others[turn.label] else []
        if kind == "life-like":
            labels = [label for label, turns in others.items() if turns]
        if labels:
            drawn = rng.choices(labels, [SHARES[MELD_LABELS[label]] for label in labels], k=HISTORY_TURNS)
            past = [replace(rng.choice(others[label]), label=UNLABELLED) for label in drawn]
            result.append(replace(clip, turns=(*past, turn)))
    return result


class PooledStates:
    """Pooled states of clips as (features,) tensors, from a cache on disk."""

    def __init__(self, encoder: nn.Module, config: ModelConfig) -> None:
        self.cache = AudioCache(encoder, (config.audio_states, config.audio_dim), pooled=True)

    def clip(self, turn: Utterance) -> Tensor:
        """Mean and deviation over frames of all layers of a turn's audio: (features,)."""
        assert turn.audio is not None
        return torch.from_numpy(self.cache.states(turn.audio).astype("float32")).flatten()

    def matrix(self, dialogues: Sequence[Dialogue]) -> Tensor:
        """(N, features) of the last turn of each dialogue, minus the mean of its earlier turns."""
        self.cache.fill(list({t.audio: None for d in dialogues for t in d.turns if t.audio}))
        rows = []
        for dialogue in dialogues:
            *past, turn = map(self.clip, dialogue.turns)
            rows.append(turn - torch.stack(past).mean(0) if past else turn)
        return torch.stack(rows)


def fit_linear(states: PooledStates, names: Sequence[str], kind: History) -> Linear:
    """Train on the training clips of these corpora; every corpus × label weighs the same, except for `SHARE`."""
    rows, labels, weights = [], [], []
    for name in names:
        clips = with_history(corpora.load(name).split("train"), kind, seed=1)
        truth = torch.tensor([d.turns[-1].label for d in clips])
        counts = torch.bincount(truth, minlength=len(MELD_LABELS))
        rows.append(states.matrix(clips))
        labels.append(truth)
        weights.append(SHARE.get(name, 1.0) / counts[truth])
    x, y, w = torch.cat(rows), torch.cat(labels), torch.cat(weights)
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    return Linear(mean, deviation, *fit((x - mean) / deviation, y, len(MELD_LABELS), WEIGHT_DECAY, w / w.mean()))


def unseen_uar(logits: Tensor, labels: Tensor) -> float:
    """UAR over the labels that occur: the most probable of those counts as the answer."""
    present = torch.zeros(logits.shape[1], dtype=torch.bool)
    present[labels.unique()] = True
    return float(scores(logits.masked_fill(~present, -1e9), labels, MELD_LABELS)["uar"])


def tested_sets(names: Sequence[str]) -> dict[str, Tested]:
    """Sets to choose on: each training corpus with the others as training data, RAVDESS 15-16, and KoEMO."""
    sets = {}
    for name in names:
        others = tuple(other for other in names if other != name)
        sets[f"{name}, left out"] = Tested(name, corpora.load(name).split("train"), others, True)
    if "ravdess" in names:
        sets["ravdess 15–16, other actors"] = Tested("ravdess", corpora.load("ravdess").split("dev"), tuple(names))
    sets["koemo"] = Tested("koemo", corpora.load("koemo").split("dev"), tuple(names))
    return sets


def unseen_sets(names: Sequence[str]) -> dict[str, Tested]:
    """Corpora that nothing was chosen on. Only for the ledger."""
    return {name: Tested(name, corpora.load(name).final_test(), tuple(names), True) for name in UNSEEN}


def score_voices(sets: dict[str, Tested], encoder: nn.Module, model: Model | None, limit: int) -> dict[str, Any]:
    """UAR of the linear model, and of a model if there is one, for each set and kind of history.

    Args:
        sets: result of `tested_sets` or `unseen_sets`.
        encoder: the frozen audio encoder.
        model: to compare, or None. Sets that it was trained on get no score of it.
        limit: number of clips of each set, about.
    """
    config = encoders.model_config()
    states, result = PooledStates(encoder, config), dict[str, Any]()
    features = FeatureProvider(model.module, TrainConfig(use="audio")) if model is not None else None
    for name, tested in sets.items():
        clips = sample_clips(tested.clips, limit)
        labels_present = len({d.turns[0].label for d in clips})
        row: dict[str, Any] = {"clips": len(clips), "chance": 1 / labels_present, "trained_on": [*tested.trained_on]}
        is_unseen = model is not None and not (tested.is_training_data and tested.corpus in model.corpora)
        if features is not None and is_unseen:
            features.prepare(clips)
        for kind in HISTORIES:
            dialogues = with_history(clips, kind)
            if not dialogues:
                continue
            labels = torch.tensor([d.turns[-1].label for d in dialogues])
            linear = fit_linear(states, tested.trained_on, "first turn" if kind == "first turn" else "life-like")
            row[f"linear, {kind}"] = unseen_uar(linear(states.matrix(dialogues)), labels)
            if model is not None and features is not None and is_unseen:
                predictions = predict_labelled(model.module, features, dialogues, "audio")
                row[f"model, {kind}"] = unseen_uar(predictions.logits, predictions.labels)
        result[name] = row
    return result


def table_rows(result: dict[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of a table with one row per tested set."""
    who = [w for w in ("linear", "model") if any(f"{w}, first turn" in row for row in result.values())]
    columns = ["chance", *(f"{w}, {kind}" for w in who for kind in HISTORIES)]
    rows: list[list[Cell]] = [
        [name, " ".join(row["trained_on"]), row["clips"], *(round(row[c], 3) if c in row else None for c in columns)]
        for name, row in result.items()
    ]
    return ["tested on", "linear model trained on", "clips", *columns], rows


def load_model(path: Path) -> Model:
    """Load a checkpoint or a bundle."""
    if (path / "config.json").exists():
        trained_on = checkpoint.describe(path)[0].get("corpora", ())
        return Model(path.name, load_training_module(path), tuple(trained_on), weights_hash([path]), "")
    bundle = load_bundle(path)
    module, manifest = TrainingModule(*restore(bundle)).eval(), bundle.manifest
    return Model(manifest["name"], module, tuple(manifest.get("corpora", ())), ledger.bundle_hash(bundle), bundle.key)


def main(
    model: Path | None = None,
    clips: tuple[str, ...] = ("ravdess", "nemo", "emospeech"),
    limit: int = 400,
    final: bool = False,
    save: Path | None = None,
    compute: Compute = Compute(device="cpu"),
    json_output: bool = False,
) -> None:
    """Compare.

    Args:
        model: checkpoint or bundle to show beside the linear model.
        clips: corpora that the linear model is trained on.
        limit: clips of each tested set, about.
        final: test on the unseen corpora instead, and enter the result in the ledger.
        save: JSON file for the result, such as benchmarks/results/voices.json.
        compute: device and threads.
    """
    compute.start()
    loaded = load_model(model) if model is not None else None
    encoder = encoders.load_audio(encoders.model_config().audio_encoder)

    if final:
        sets = unseen_sets(clips)
        data = {f"{name}, {limit} clips; linear: {' '.join(clips)}": digest(one.clips) for name, one in sets.items()}
        name, sha256 = (loaded.name, loaded.sha256) if loaded is not None else ("linear model", "none")
        result = ledger.score_once(name, sha256, data, lambda: score_voices(sets, encoder, loaded, limit))
    else:
        result = score_voices(tested_sets(clips), encoder, loaded, limit)
    head, rows = table_rows(result)
    if save is not None:
        save_report(save, "Voices of corpora never met", head, rows, TEXT, loaded.key if loaded is not None else "")
    shown = Table(*head)
    for row in rows:
        shown.add_row(*map(cell_text, row))
    emit(result, json_output, shown)


if __name__ == "__main__":
    cli(main)
