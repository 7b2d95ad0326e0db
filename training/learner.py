"""HBAF together with its encoders: histories of turns in, logits or loss out.

An encoder is frozen (its states come from a cache), learns whole, or through LoRA; whichever way, a turn carries
either the encoder's states or what the encoder reads, and `Learner` tells the two apart by what it finds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hbaf_edge.audio import SAMPLE_RATE, load_audio
from training import augment, batches, checkpoint, encode, losses
from training.batches import Turn
from training.config import LossWeights, TrainConfig
from training.model import HBAF, Batch, Output
from training.words import Tokens

LORA_TARGETS = r".*\.(query|key|value|dense|qkv|out|feed\.0|feed\.2|[qkv]_proj|out_proj|\w+_dense)"
# WavLM hands the weights of its attention to a function of torch's, past any adapter: only its feed-forward maps learn.
WAVLM_TARGETS = r".*\.\w+_dense"
ORDER_SPEED = 10.0  # order and speakers enter by few numbers, which would hardly move at the rate of all others
# Of SpecAugment: mel bins and frames; samples. Short, and in half of the clips: Whisper's states of a clip of three
# seconds change so much with two bands of 12 bins and 25 frames that a head trained without loses half of what it knew.
LONGEST_BAND = {"mel": (8, 15), "wave": (0, 1600)}
HIDDEN_CLIPS = 0.5


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
        device = self.hbaf.absent.device
        text = with_states([t.text for t in turns], Tokens, lambda found: encode.texts(cast(Any, self.text), found))
        audio = with_states([t.audio for t in turns], Path, self._encode_audio)
        return batches.collate(
            histories, audio, text, (c.audio_states, c.audio_dim), (c.text_states, c.text_dim), c.stack, device
        )

    def _encode_audio(self, found: list[Path]) -> Iterator[tuple[int, Tensor]]:
        """Cropped, augmented and hidden in parts while training."""
        assert self.audio is not None
        prepared = [cast(Any, self.audio).prepare(self._heard(path)) for path in found]
        if self.training and self.augment:
            prepared = [hide_parts(p) if augment.chance(HIDDEN_CLIPS) else p for p in prepared]
        return encode.clips(self.audio, prepared)

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


def hide_parts(prepared: Tensor) -> Tensor:
    """SpecAugment on log-mel (80, frames); spans of silence in a waveform (samples,)."""
    if prepared.ndim == 2:
        return augment.hide(prepared, LONGEST_BAND["mel"])
    return augment.hide(prepared[None], LONGEST_BAND["wave"])[0]


def tune(encoder: nn.Module | None, how: str, rank: int) -> nn.Module | None:
    """Freeze an encoder, let it learn whole, or add LoRA of that rank to every linear map of its blocks."""
    if encoder is None:
        return None
    encoder.requires_grad_(how == "full")
    if how != "lora":
        return encoder
    from peft import LoraConfig, get_peft_model

    inner = getattr(getattr(encoder, "model", None), "config", None)
    targets = WAVLM_TARGETS if getattr(inner, "model_type", "") == "wavlm" else LORA_TARGETS
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=targets)
    return cast(nn.Module, get_peft_model(cast(Any, encoder), config))


def load_learner(folder: Path, device: torch.device | str = "cpu") -> Learner:
    """A checkpoint's model and encoders, nothing of it to be trained."""
    stored = checkpoint.load(folder)
    learner = Learner(stored.hbaf, tune(stored.text, "frozen", 1), tune(stored.audio, "frozen", 1))
    return learner.to(device).eval()


def merged(encoder: nn.Module | None) -> nn.Module | None:
    """The encoder with LoRA's share added to its weights; itself where there is none. The given one stays as it is."""
    if encoder is None or not hasattr(encoder, "merge_and_unload"):
        return encoder
    return cast(nn.Module, cast(Any, copy.deepcopy(encoder)).merge_and_unload())


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
