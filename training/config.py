"""Sizes and choices: the model's, the loss's and a training run's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

MELD_LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
NEUTRAL = MELD_LABELS.index("neutral")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of HBAF. Shapes in the model are named after these: d = width, H = heads, W = window."""

    labels: tuple[str, ...] = MELD_LABELS
    audio_encoder: str = "audio"  # Whisper tiny.en; "audio-base" is Whisper base (training/encoders.py)
    audio_dim: int = 384  # of the audio encoder's states
    audio_states: int = 5  # its convolutional stem and four blocks
    text_dim: int = 384
    text_states: int = 7  # embeddings and six layers
    width: int = 256
    heads: int = 4
    utterance_layers: int = 2
    dialogue_layers: int = 2
    window: int = 32  # utterances: the current one and the W − 1 before it
    stack: int = 4  # frames of 50 Hz that become one of 12.5 Hz
    kernel: int = 15  # frames seen by the depthwise convolution
    dropout: float = 0.1
    contrastive_dim: int = 128
    # The paper's ablations and ours; see MODEL.md, "Flags".
    context_network: bool = True
    fusion: bool = True
    gate: bool = True
    relevance: bool = True
    residual: bool = True
    causal: bool = True

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelConfig:
        """Back from `to_json`; an unknown field is an error, since it would change the model in silence."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"model config has unknown fields {sorted(unknown)}; it is of another version")
        return cls(**{**values, "labels": tuple(values["labels"])})


@dataclass(frozen=True)
class LossWeights:
    """CE + λ_abs·L_abs + λ_rel·L_rel + λ_uni·(CE_a + CE_t)."""

    absolute: float = 0.1
    relative: float = 0.1
    unimodal: float = 0.3
    temperature: float = 0.1


@dataclass(frozen=True)
class TrainConfig:
    """One run of training.train. `stage` is "text" (encoder fine-tuned on dialogues) or "fusion" (cached features)."""

    stage: str = "fusion"
    open: bool = False  # only corpora that allow commercial use: DailyTalk and EmoGator
    seed: int = 0
    epochs: int = 4
    learning_rate: float = 4e-4
    encoder_rate: float = 8e-5
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    clip: float = 1.0
    sequences: int = 3  # joined dialogues in one batch
    max_turns: int = 40  # of one joined dialogue
    audio_seconds: float = 4.5  # a clip longer than this is cropped at random in training
    drop_audio: float = 0.15
    drop_text: float = 0.15  # of turns with a matched partner
    mislead: float = 0.4  # share of a dialogue's audio partners that are plain speech, noise or of any label
    paired: float = 0.7  # share of text utterances that get a label-matched clip
    hide_speaker: float = 0.1
    talk_share: float = 1.0  # of MELD's dialogues in each epoch
    dailytalk_share: float = 0.3  # of DailyTalk's
    clip_batch: int = 64  # turns in a batch of clips
    ravdess_repeats: int = 3  # of each of its clips in an epoch: few actors, but the only sentences
    other_clips: int = 2500  # of TESS and EmoGator in an epoch
    loss: LossWeights = field(default_factory=LossWeights)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)
