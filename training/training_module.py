"""HBAF together with its encoders: histories of turns in, logits or loss out.

An encoder is either frozen, and its states come from a cache, or it is trained. A turn contains encoder states or the
input of an encoder; `TrainingModule` encodes the latter. `initialise` builds the module at the start of a run, new or
from a checkpoint, and checks that corpus, settings and checkpoint fit each other.
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

ORDER_RATE_FACTOR = 10.0  # order biases are few numbers that would hardly change at the learning rate of the others
SPECAUGMENT_SHARE = 0.5  # share of clips with SpecAugment


class TrainingModule(nn.Module):
    """HBAF and its encoders.

    Args:
        hbaf: the model.
        text, audio: encoders, or None if all turns contain states.
        weights: loss weights.
        balance: weight of each label in the cross-entropy (labels,), or None.
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
        self.audio_seconds = 0.0  # clips are cropped to this length in training; 0 for no limit

    def forward(self, histories: Sequence[Sequence[Turn]]) -> Tensor:
        """Mean loss over the labelled turns of the histories, a scalar."""
        batch = self.batch(histories)
        return losses.total(self.hbaf, batch, self.hbaf(batch), self.weights, self.balance)

    def output(self, histories: Sequence[Sequence[Turn]]) -> Output:
        """Logits and codes of all turns, in the order of the histories."""
        output: Output = self.hbaf(self.batch(histories))
        return output

    def batch(self, histories: Sequence[Sequence[Turn]]) -> Batch:
        """Encode tokens and clips, and pad all states to a batch."""
        turns = [turn for history in histories for turn in history]
        c = self.hbaf.config
        text = encode_items([t.text for t in turns], Tokens, self._encode_texts)
        audio = encode_items([t.audio for t in turns], Path, self._encode_audio)
        shapes = (c.audio_states, c.audio_dim), (c.text_states, c.text_dim)
        return batches.collate(histories, audio, text, *shapes, c.stack, self.hbaf.absent.device)

    def _encode_texts(self, texts: list[Tokens]) -> Iterator[tuple[int, Tensor]]:
        assert self.text is not None
        return batches.encode_texts(self.text, texts)

    def _encode_audio(self, paths: list[Path]) -> Iterator[tuple[int, Tensor]]:
        """Encode clips; in training they are cropped, augmented and masked."""
        assert self.audio is not None
        prepared = [cast(Any, self.audio).prepare(self._load_clip(path)) for path in paths]
        if self.training and self.augment:
            prepared = [augment.mask_spectrogram(p) if augment.happens(SPECAUGMENT_SHARE) else p for p in prepared]
        return batches.encode_clips(self.audio, prepared)

    def _load_clip(self, path: Path) -> Tensor:
        samples = torch.from_numpy(load_audio(path).samples)
        if not self.training:
            return samples
        if self.augment:
            samples = self.augment(samples)
        limit = int(self.audio_seconds * SAMPLE_RATE)
        start = int(torch.randint(0, max(0, len(samples) - limit) + 1, ()))
        return samples[start : start + limit] if limit else samples

    def train(self, mode: bool = True) -> TrainingModule:
        """Switch to training mode. Frozen encoders stay in eval mode, without dropout."""
        super().train(mode)
        for encoder in (self.text, self.audio):
            if encoder is not None and not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self


def encode_items(
    items: list[Any], kind: type, encode: Callable[[list[Any]], Iterable[tuple[int, Tensor]]]
) -> list[Any]:
    """Replace the items of a type by their states, in place, with one call of `encode`."""
    indices = [i for i, item in enumerate(items) if isinstance(item, kind)]
    for i, states in encode([items[i] for i in indices]) if indices else ():
        items[indices[i]] = states
    return items


def load_training_module(folder: Path, device: torch.device | str = "cpu") -> TrainingModule:
    """Load a checkpoint's model and encoders in eval mode, all parameters frozen."""
    stored = checkpoint.load(folder)
    return TrainingModule(stored.hbaf, stored.text, stored.audio).requires_grad_(False).to(device).eval()


def parameter_groups(module: TrainingModule, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: learning rate by part, and no weight decay on norms and biases."""
    by_setting: dict[tuple[float, float], list[nn.Parameter]] = {}
    encoder_rates = ((part, config.encoder_rate) for part in (module.text, module.audio))
    for part, rate in ((module.hbaf, config.learning_rate), *encoder_rates):
        for name, parameter in part.named_parameters() if part is not None else ():
            if not parameter.requires_grad:
                continue
            is_order = part is module.hbaf and name.endswith(".table")
            decay = config.weight_decay if parameter.ndim > 1 and not is_order else 0.0
            setting = rate * ORDER_RATE_FACTOR if is_order else rate, decay
            by_setting.setdefault(setting, []).append(parameter)
    return [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in by_setting.items()]


def initialise(
    config: TrainConfig, corpus: Corpus, model: ModelConfig | None, init: Path | None
) -> tuple[TrainingModule, dict[str, Any]]:
    """Build the module at the start of a run.

    Args:
        config: which encoders are trained, and the loss.
        corpus: its labels or vectors decide some sizes.
        model: settings of a new model; with `init` only checked.
        init: checkpoint to start from, or None for a new model.

    Returns:
        The module, and what its checkpoint will say about its history: corpora trained on, encoders trained and
        modalities trained before.
    """
    about: dict[str, Any] = {}
    if init:
        hbaf, text, audio, about = checkpoint.load(init)
        check_flags(model, hbaf.config, init)
        hbaf = with_labels(hbaf, corpus.labels)
    else:
        hbaf, text, audio = _new_model(corpus, model or ModelConfig())
    check_inputs(corpus, hbaf.config)
    tuned = []
    for role, encoder in (("text", text), ("audio", audio)):
        is_trained = getattr(config, f"{role}_tuning") != "frozen"
        tuned += [role] if is_trained else []
        if encoder is not None:
            encoder.requires_grad_(is_trained)
    counts = Counter(t.label for d in corpus.split("train") for t in d.turns if t.label != UNLABELLED)
    label_counts = torch.tensor([counts[i] for i in range(len(corpus.labels))])
    module = TrainingModule(hbaf, text, audio, config.loss, losses.label_weights(label_counts, config.loss.balance))
    module.augment = augment.Augment() if config.augment and config.audio_tuning != "frozen" else None
    module.audio_seconds = config.audio_seconds
    seen = [*(about.get("corpora", ["unknown"]) if init else ()), *config.corpora]
    return module, {
        "corpora": list(dict.fromkeys(seen)),
        "tuned": list(dict.fromkeys([*about.get("tuned", []), *tuned])),
        "shown": list(about.get("shown", ["audio", "text"] if init else [])),
    }


def _new_model(corpus: Corpus, model: ModelConfig) -> tuple[HBAF, nn.Module | None, nn.Module | None]:
    """A new HBAF with its encoders, or for the vectors of the corpus."""
    vectors = next((t.vectors for d in corpus.dialogues for t in d.turns if t.vectors), None)
    if vectors is None:
        sizes = encoders.model_config(model.audio_encoder, model.text_encoder)
        names = ("audio_encoder", "text_encoder", "audio_dim", "audio_states", "text_dim", "text_states")
        config = replace(model, labels=corpus.labels, **{n: getattr(sizes, n) for n in names})
        return HBAF(config), encoders.load_text(config.text_encoder), encoders.load_audio(config.audio_encoder)
    dims = [0 if v is None else v.shape[-1] for v in (vectors.audio, vectors.text)]
    no_encoder = {
        "audio_encoder": checkpoint.NO_ENCODER, "text_encoder": checkpoint.NO_ENCODER, "audio_states": 1,
        "text_states": 1,
    }  # fmt: skip
    # An utterance is a single vector, so there are no frames to stack or to convolve.
    sizes_of_vectors = {"audio_dim": dims[0], "text_dim": dims[1], "stack": 1, "kernel": 1, **no_encoder}
    return HBAF(replace(model, labels=corpus.labels, **sizes_of_vectors)), None, None  # type: ignore[arg-type]


def check_flags(model: ModelConfig | None, stored: ModelConfig, init: Path) -> None:
    """Raise TrainingError if a model setting differs from the checkpoint, which would ignore it."""
    defaults = ModelConfig()
    requested = {} if model is None else {f.name: getattr(model, f.name) for f in fields(model)}
    ignored = [
        n for n, v in requested.items() if v != getattr(defaults, n) and v != getattr(stored, n) and n != "labels"
    ]
    if ignored:
        stored_values = ", ".join(f"{n} {getattr(stored, n)!r}" for n in ignored)
        option = "--" + ignored[0].replace("_", "-")
        raise TrainingError(f"{init} is a model with {stored_values}; leave {option} out, or train without --init")


def check_inputs(corpus: Corpus, model: ModelConfig) -> None:
    """Raise TrainingError unless corpus and model both use vectors of the same widths, or both use encoders."""
    vectors = next((t.vectors for d in corpus.dialogues for t in d.turns if t.vectors), None)
    if (vectors is not None) != (model.text_encoder == checkpoint.NO_ENCODER):
        kinds = "vectors, but the model has encoders" if vectors else "text and clips, but the model needs vectors"
        raise TrainingError(f"{corpus.name} contains {kinds}; choose another corpus or checkpoint")
    for name in ("audio", "text"):
        vector, width = getattr(vectors, name, None), getattr(model, f"{name}_dim")
        if vector is not None and vector.shape[-1] != width:
            raise TrainingError(
                f"{corpus.name} has {name} vectors of width {vector.shape[-1]}; the model needs width {width}"
            )


def with_labels(model: HBAF, labels: tuple[str, ...]) -> HBAF:
    """The model itself if it has these labels, else a copy with new output layers."""
    if model.config.labels == labels:
        return model
    new = HBAF(replace(model.config, labels=labels))
    old_state, new_state = model.state_dict(), new.state_dict()
    new.load_state_dict({k: old_state[k] if old_state[k].shape == v.shape else v for k, v in new_state.items()})
    for name, part in new.named_modules():
        if name in ("head", "unimodal_heads.0", "unimodal_heads.1"):
            # The labels differ even if their number is the same, so the copied output layer has to go.
            cast(nn.Linear, cast(nn.Sequential, part)[-1]).reset_parameters()
    return new
