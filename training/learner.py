"""HBAF together with its encoders: histories of turns in, logits or loss out.

An encoder is frozen (its states come from a cache) or learns; a turn carries either the encoder's states or what the
encoder reads, and `Learner` tells the two apart by what it finds. `begin` makes the learner a run starts with: afresh
on its encoders, or from a checkpoint, with what does not fit refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hbaf_edge.audio import SAMPLE_RATE, load_audio
from training import augment, batches, checkpoint, encoders, losses
from training.batches import Tokens, Turn
from training.config import LossWeights, ModelConfig, TrainConfig
from training.corpora.records import UNLABELLED, Corpus
from training.errors import TrainingError
from training.model import HBAF, Batch, Output

ORDER_SPEED = 10.0  # order and speakers enter by few numbers, which would hardly move at the rate of all others
HIDDEN_CLIPS = 0.5  # share of clips with SpecAugment


class Learner(nn.Module):
    """HBAF and its encoders.

    Args:
        hbaf: the model.
        text, audio: encoders, or None where turns only ever carry states.
        weights: of the losses.
        balance: (labels,) weight of each label in the cross-entropy, or None.
    """

    def __init__(
        self,
        hbaf: HBAF,
        text: nn.Module | None,
        audio: nn.Module | None,
        weights: LossWeights | None = None,
        balance: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.hbaf, self.text, self.audio = hbaf, text, audio
        self.weights = weights or LossWeights()
        self.balance: Tensor | None
        self.register_buffer("balance", balance, persistent=False)
        self.augment: augment.Augment | None = None
        self.audio_seconds = 0.0  # clips are cropped to this in training

    def forward(self, histories: Sequence[Sequence[Turn]]) -> Tensor:
        """The mean loss over the histories' labelled turns: a scalar."""
        batch = self.batch(histories)
        return losses.total(self.hbaf, batch, self.hbaf(batch), self.weights, self.balance)

    def output(self, histories: Sequence[Sequence[Turn]]) -> Output:
        """Logits and codes of every turn, in the order of the histories."""
        found: Output = self.hbaf(self.batch(histories))
        return found

    def batch(self, histories: Sequence[Sequence[Turn]]) -> Batch:
        """Encode what is not encoded yet, and pad."""
        turns = [turn for history in histories for turn in history]
        c = self.hbaf.config
        text = with_states([t.text for t in turns], Tokens, self._encode_texts)
        audio = with_states([t.audio for t in turns], Path, self._encode_audio)
        sizes = (c.audio_states, c.audio_dim), (c.text_states, c.text_dim)
        return batches.collate(histories, audio, text, *sizes, c.stack, self.hbaf.absent.device)

    def _encode_texts(self, found: list[Tokens]) -> Iterator[tuple[int, Tensor]]:
        assert self.text is not None
        return batches.encode_texts(self.text, found)

    def _encode_audio(self, found: list[Path]) -> Iterator[tuple[int, Tensor]]:
        """Cropped, augmented and hidden in parts while training."""
        assert self.audio is not None
        prepared = [cast(Any, self.audio).prepare(self._heard(path)) for path in found]
        if self.training and self.augment:
            prepared = [augment.hide(p) if augment.chance(HIDDEN_CLIPS) else p for p in prepared]
        return batches.encode_clips(self.audio, prepared)

    def _heard(self, path: Path) -> Tensor:
        samples = torch.from_numpy(load_audio(path).samples)
        if not self.training:
            return samples
        if self.augment:
            samples = self.augment(samples)
        limit = int(self.audio_seconds * SAMPLE_RATE)
        start = int(torch.randint(0, max(0, len(samples) - limit) + 1, ()))
        return samples[start : start + limit] if limit else samples

    def train(self, mode: bool = True) -> Learner:
        """Frozen encoders stay in eval mode: no dropout in what does not learn."""
        super().train(mode)
        for encoder in (self.text, self.audio):
            if encoder is not None and not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self


def with_states(given: list[Any], kind: type, encode_them: Callable[[list[Any]], Iterable[tuple[int, Tensor]]]) -> list:
    """The list with states where there was something of that kind to encode."""
    places = [i for i, x in enumerate(given) if isinstance(x, kind)]
    for place, states in encode_them([given[i] for i in places]) if places else ():
        given[places[place]] = states
    return given


def load_learner(folder: Path, device: torch.device | str = "cpu") -> Learner:
    """A checkpoint's model and encoders, nothing of it to be trained."""
    stored = checkpoint.load(folder)
    return Learner(stored.hbaf, stored.text, stored.audio).requires_grad_(False).to(device).eval()


def groups_of(learner: Learner, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameters for AdamW: no decay on norms and biases; an encoder at its own rate, order and speakers faster."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    encoders_of = ((part, config.encoder_rate) for part in (learner.text, learner.audio))
    for part, rate in ((learner.hbaf, config.learning_rate), *encoders_of):
        for name, parameter in part.named_parameters() if part is not None else ():
            if not parameter.requires_grad:
                continue
            order = part is learner.hbaf and name.endswith(".table")
            decay = config.weight_decay if parameter.ndim > 1 and not order else 0.0
            found.setdefault((rate * ORDER_SPEED if order else rate, decay), []).append(parameter)
    return [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in found.items()]


def begin(
    config: TrainConfig, corpus: Corpus, model: ModelConfig | None, init: Path | None
) -> tuple[Learner, dict[str, Any]]:
    """The learner a run starts with, and its lineage.

    That is: corpora its weights will have seen, encoders not as packaged, modalities shown before.
    """
    about: dict[str, Any] = {}
    if init:
        hbaf, text, audio, about = checkpoint.load(init)
        check_flags(model, hbaf.config, init)
        hbaf = relabelled(hbaf, corpus.labels)
    else:
        hbaf, text, audio = _afresh(corpus, model or ModelConfig())
    check_kind(corpus, hbaf.config)
    tuned = []
    for role, encoder in (("text", text), ("audio", audio)):
        learns = getattr(config, f"{role}_tuning") != "frozen"
        tuned += [role] if learns else []
        if encoder is not None:
            encoder.requires_grad_(learns)
    counts = Counter(t.label for d in corpus.split("train") for t in d.turns if t.label != UNLABELLED)
    balance = losses.balance_of(torch.tensor([counts[i] for i in range(len(corpus.labels))]), config.loss.balance)
    learner = Learner(hbaf, text, audio, config.loss, balance)
    learner.augment = augment.Augment() if config.augment and config.audio_tuning != "frozen" else None
    learner.audio_seconds = config.audio_seconds
    seen = [*(about.get("corpora", ["unknown"]) if init else ()), *config.corpora]
    return learner, {
        "corpora": list(dict.fromkeys(seen)),
        "tuned": list(dict.fromkeys([*about.get("tuned", []), *tuned])),
        "shown": list(about.get("shown", ["audio", "text"] if init else [])),
    }


def _afresh(corpus: Corpus, model: ModelConfig) -> tuple[HBAF, nn.Module | None, nn.Module | None]:
    """A new HBAF on its encoders, or on the vectors that the corpus brings."""
    vectors = next((t.vectors for d in corpus.dialogues for t in d.turns if t.vectors), None)
    if vectors is None:
        sizes = encoders.model_config(model.audio_encoder, model.text_encoder)
        names = ("audio_encoder", "text_encoder", "audio_dim", "audio_states", "text_dim", "text_states")
        found = replace(model, labels=corpus.labels, **{n: getattr(sizes, n) for n in names})
        return HBAF(found), encoders.load_text(found.text_encoder), encoders.load_audio(found.audio_encoder)
    dims = [0 if v is None else v.shape[-1] for v in (vectors.audio, vectors.text)]
    none = {"audio_encoder": checkpoint.NONE, "text_encoder": checkpoint.NONE, "audio_states": 1, "text_states": 1}
    # One vector is an utterance: nothing to stack, nothing to convolve.
    found = replace(model, labels=corpus.labels, audio_dim=dims[0], text_dim=dims[1], stack=1, kernel=1, **none)  # type: ignore[arg-type]
    return HBAF(found), None, None


def check_flags(model: ModelConfig | None, stored: ModelConfig, init: Path) -> None:
    """Refuse flags that a model which is gone on with would ignore."""
    plain = ModelConfig()
    asked = {} if model is None else {f.name: getattr(model, f.name) for f in fields(model)}
    ignored = [n for n, v in asked.items() if v != getattr(plain, n) and v != getattr(stored, n) and n != "labels"]
    if ignored:
        said = ", ".join(f"{n} {getattr(stored, n)!r}" for n in ignored)
        raise TrainingError(
            f"{init} is a model with {said}; leave --{ignored[0].replace('_', '-')} out, or train afresh"
        )


def check_kind(corpus: Corpus, model: ModelConfig) -> None:
    """Refuse a corpus of vectors for a model with encoders, a model of vectors for any other, and other widths."""
    vectors = next((t.vectors for d in corpus.dialogues for t in d.turns if t.vectors), None)
    if (vectors is not None) != (model.text_encoder == checkpoint.NONE):
        kinds = "vectors, the model has encoders" if vectors else "words and clips, the model was trained on vectors"
        raise TrainingError(f"{corpus.name} brings {kinds} of its own; they do not fit each other")
    for name in ("audio", "text"):
        found, wanted = getattr(vectors, name, None), getattr(model, f"{name}_dim")
        if found is not None and found.shape[-1] != wanted:
            raise TrainingError(f"{corpus.name} has {name} vectors of {found.shape[-1]}, the model's are of {wanted}")


def relabelled(model: HBAF, labels: tuple[str, ...]) -> HBAF:
    """The model itself, or its like with fresh last layers where the labels are others."""
    if model.config.labels == labels:
        return model
    fresh = HBAF(replace(model.config, labels=labels))
    old, new = model.state_dict(), fresh.state_dict()
    fresh.load_state_dict({name: old[name] if old[name].shape == value.shape else value for name, value in new.items()})
    for name, module in fresh.named_modules():
        if name in ("head", "unimodal_heads.0", "unimodal_heads.1"):
            cast(nn.Linear, cast(nn.Sequential, module)[-1]).reset_parameters()  # other labels, even if as many
    return fresh
