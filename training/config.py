"""Sizes and choices: the model's, the loss's and a training run's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from training.errors import TrainingError

MELD_LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
NEUTRAL = MELD_LABELS.index("neutral")
Use = Literal["audio+text", "text", "audio"]
Tuning = Literal["frozen", "full"]
# Variants that gained nothing and are gone (RESULTS.md); the default model's files name them as switched off.
OFF = (("earlier_turns", 0), ("recurrent", False))
FILES = {".jsonl": "manifest", ".csv": "manifest", ".npz": "features"}


def split_spec(spec: str) -> tuple[str, str]:
    """A corpus' name and place from NAME, NAME:PATH or the PATH of a manifest or of features.

    >>> split_spec("meld"), split_spec("meld:MELD.Raw"), split_spec("my/data.csv")
    (('meld', ''), ('meld', 'MELD.Raw'), ('manifest', 'my/data.csv'))
    """
    name, _, place = spec.partition(":")
    kind = next((kind for end, kind in FILES.items() if spec.endswith(end)), "")
    return (kind, spec) if kind and not place else (name, place)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of HBAF. Shapes in the model are named after these: d = width, H = heads, W = window."""

    labels: tuple[str, ...] = MELD_LABELS
    audio_encoder: str = "audio"  # Whisper tiny.en; "audio-base" is Whisper base
    text_encoder: str = "text"  # MiniLM
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
        values = {name: value for name, value in values.items() if (name, value) not in OFF}
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise TrainingError(f"model config has unknown fields {sorted(unknown)}; it is of another version")
        return cls(**{**values, "labels": tuple(values["labels"])})


@dataclass(frozen=True)
class LossWeights:
    """CE + λ_abs·L_abs + λ_rel·L_rel + λ_uni·(CE_a + CE_t)."""

    absolute: float = 0.1
    relative: float = 0.1
    unimodal: float = 0.3
    temperature: float = 0.1  # of the contrastive losses
    balance: float = 0.0  # class weights are (1 / frequency) to this power, their mean over utterances 1
    smoothing: float = 0.0  # label smoothing


@dataclass(frozen=True)
class PairConfig:
    """How texts and clips of different corpora are paired where no natural pairs are at hand (training/pairs.py)."""

    clips: tuple[str, ...] = ("ravdess", "tess", "emogator")
    paired: float = 0.7  # share of text utterances that get a label-matched clip
    misleading: float = 0.4  # share of those partners that are plain speech, noise or of any label
    repeats: int = 3  # of each clip of the first corpus in an epoch: few actors, but the only sentences
    other_clips: int = 2500  # of the other corpora in an epoch
    clip_turns: int = 64  # in a batch of clips


@dataclass(frozen=True)
class TrainConfig:
    """One training run; all that decides its result besides the data themselves."""

    corpus: str = "meld"  # NAME or NAME:PATH
    also: tuple[str, ...] = ()  # further training dialogues, each NAME[:PATH][@SHARE drawn in each epoch]
    pair: bool = False  # pair its texts with clips of other corpora (the default recipe)
    use: Use = "audio+text"  # modalities shown
    fold: int | None = None  # this fold tests, the next selects; None takes the corpus' own split
    skip: str = ""  # a skip list written by training.check
    text_tuning: Tuning = "frozen"
    audio_tuning: Tuning = "frozen"
    seed: int = 0
    epochs: int = 4
    patience: int = 0  # epochs without a better dev score before stopping; 0 never stops early
    learning_rate: float = 4e-4
    encoder_rate: float = 8e-5
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    clip: float = 1.0  # gradient norm
    ema: float = 0.0  # decay of the averaged weights that are judged and stored; 0 keeps the last ones
    turns: int = 60  # in a batch, about
    accumulate: int = 1  # batches to one step of the optimiser
    precision: Literal["float32", "bf16"] = "float32"  # of matrix products, on a GPU only
    max_turns: int = 40  # of one joined dialogue
    audio_seconds: float = 4.5  # a clip longer than this is cropped at random in training
    drop_audio: float = 0.15  # share of utterances with both that lose one
    drop_text: float = 0.15
    mislead: float = 0.1  # share of them of which one is taken from another turn, to be rejected
    hide_speaker: float = 0.1
    share: float = 1.0  # of the corpus' dialogues in each epoch
    copies: int = 0  # augmented variants of each clip that a frozen audio encoder sees besides the clip
    augment: bool = True  # speed, noise, reverb and SpecAugment where the audio encoder learns
    pairs: PairConfig = field(default_factory=PairConfig)
    loss: LossWeights = field(default_factory=LossWeights)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names of all corpora it reads, without paths and shares."""
        specs = (self.corpus, *self.also, *(self.pairs.clips if self.pair else ()))
        names = [split_spec(spec.rpartition("@")[0] or spec)[0] for spec in specs]
        return tuple(dict.fromkeys([*names, *(["plain"] if self.pair else [])]))

    def check(self) -> None:
        """Refuse values that would train in silence something other than what was meant."""
        for name, kind in (("use", Use), ("text_tuning", Tuning), ("audio_tuning", Tuning)):
            if getattr(self, name) not in get_args(kind):
                raise TrainingError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(kind))}")
        for name in ("epochs", "turns", "accumulate", "max_turns"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; 1 is the least")
        for name in ("drop_audio", "drop_text", "mislead", "hide_speaker", "share", "warmup", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")
        if self.audio_seconds < 0.2:
            raise TrainingError(f"audio_seconds is {self.audio_seconds}; 0.2 is the least that can be heard")
        if self.pair and not self.pairs.clips:
            raise TrainingError(
                "pair needs clips to pair words with; give --clips ravdess tess emogator, or some of them"
            )
