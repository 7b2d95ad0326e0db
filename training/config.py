"""Settings of the model, the loss and a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from training.errors import TrainingError

MELD_LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
NEUTRAL = MELD_LABELS.index("neutral")
Use = Literal["audio+text", "text", "audio"]
Tuning = Literal["frozen", "full"]
# Removed variants that gained nothing (docs/results.md). The default model's files still list them as switched off.
REMOVED_FLAGS = (("earlier_turns", 0), ("recurrent", False))
CORPUS_OF_SUFFIX = {".jsonl": "manifest", ".csv": "manifest", ".npz": "features"}


def split_spec(spec: str) -> tuple[str, str]:
    """Split NAME, NAME:PATH or the path of a manifest or feature file into a corpus name and a path.

    >>> split_spec("meld"), split_spec("meld:MELD.Raw"), split_spec("my/data.csv")
    (('meld', ''), ('meld', 'MELD.Raw'), ('manifest', 'my/data.csv'))
    """
    name, _, path = spec.partition(":")
    kind = next((kind for suffix, kind in CORPUS_OF_SUFFIX.items() if spec.endswith(suffix)), "")
    return (kind, spec) if kind and not path else (name, path)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of HBAF. Shapes in the model are named after these: d = width, H = heads, W = window."""

    labels: tuple[str, ...] = MELD_LABELS
    audio_encoder: str = "audio"  # Whisper tiny.en; "audio-base" is Whisper base
    text_encoder: str = "text"  # MiniLM
    audio_dim: int = 384  # width of the audio encoder's states
    audio_states: int = 5  # the convolutional stem and four blocks
    text_dim: int = 384
    text_states: int = 7  # embeddings and six layers
    width: int = 256
    heads: int = 4
    utterance_layers: int = 2
    dialogue_layers: int = 2
    window: int = 32  # utterances: the current one and W − 1 before it
    stack: int = 4  # frames at 50 Hz that are stacked to one frame at 12.5 Hz
    kernel: int = 15  # width of the depthwise convolution in frames
    dropout: float = 0.1
    contrastive_dim: int = 128
    # The paper's ablations and ours; see docs/model.md, "Flags".
    context_network: bool = True
    fusion: bool = True
    gate: bool = True
    relevance: bool = True
    residual: bool = True
    causal: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild a config from `to_json`. An unknown field raises: ignoring it could silently change the model."""
        values = {name: value for name, value in values.items() if (name, value) not in REMOVED_FLAGS}
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise TrainingError(f"the model config has unknown fields {sorted(unknown)}; another version wrote it")
        return cls(**{**values, "labels": tuple(values["labels"])})


@dataclass(frozen=True)
class LossWeights:
    """CE + λ_abs·L_abs + λ_rel·L_rel + λ_uni·(CE_a + CE_t)."""

    absolute: float = 0.1
    relative: float = 0.1
    unimodal: float = 0.3
    temperature: float = 0.1  # of the contrastive losses
    balance: float = 0.0  # class weights are (1 / frequency) to this power, with mean 1 over utterances
    smoothing: float = 0.0  # label smoothing


@dataclass(frozen=True)
class PairConfig:
    """How texts and clips of different corpora are paired when there are no natural pairs (training/pairs.py)."""

    clips: tuple[str, ...] = ("ravdess", "nemo", "emogator")
    paired: float = 0.7  # share of text utterances that get a label-matched clip
    mismatched: float = 0.4  # share of those clips that are plain speech, noise or a clip of any label
    repeats: int = 3  # uses per epoch of each clip of the first corpus, the only one with sentences
    other_clips: int = 2500  # clips of the other corpora per epoch
    clip_turns: int = 64  # turns in a batch of clips


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one training run that influence its result."""

    corpus: str = "meld"  # NAME or NAME:PATH
    also: tuple[str, ...] = ()  # extra training dialogues, each NAME[:PATH][@SHARE sampled per epoch]
    pair: bool = False  # pair its texts with clips of other corpora (the default recipe)
    use: Use = "audio+text"  # modalities the model reads
    fold: int | None = None  # test fold; the next fold is dev. None uses the corpus' own split
    skip: str = ""  # skip list written by training.check
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
    ema: float = 0.0  # decay of the averaged weights that are evaluated and stored; 0 uses the last weights
    turns: int = 60  # approximate number of turns in a batch
    accumulate: int = 1  # batches per optimiser step
    precision: Literal["float32", "bf16"] = "float32"  # of matrix products; bf16 needs a GPU
    max_turns: int = 40  # upper limit of the random target length of joined dialogues
    audio_seconds: float = 4.5  # longer clips are cropped at random in training
    drop_audio: float = 0.15  # share of turns with both modalities that lose their audio
    drop_text: float = 0.15  # share of turns with both modalities that lose their text
    mismatch: float = 0.1  # share of turns with both where one modality comes from another turn
    hide_speaker: float = 0.1  # share of turns whose speaker is unknown
    share: float = 1.0  # share of the corpus' dialogues used per epoch
    copies: int = 0  # augmented variants of each clip cached for a frozen audio encoder
    augment: bool = True  # speed, noise, reverb and SpecAugment when the audio encoder is trained
    pairs: PairConfig = field(default_factory=PairConfig)
    loss: LossWeights = field(default_factory=LossWeights)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names of all corpora that the run reads, without paths and shares."""
        specs = (self.corpus, *self.also, *(self.pairs.clips if self.pair else ()))
        names = [split_spec(spec.rpartition("@")[0] or spec)[0] for spec in specs]
        return tuple(dict.fromkeys([*names, *(["plain"] if self.pair else [])]))

    def validate(self) -> None:
        """Raise TrainingError for a value out of range."""
        for name, kind in (("use", Use), ("text_tuning", Tuning), ("audio_tuning", Tuning)):
            if getattr(self, name) not in get_args(kind):
                raise TrainingError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(kind))}")
        for name in ("epochs", "turns", "accumulate", "max_turns"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("drop_audio", "drop_text", "mismatch", "hide_speaker", "share", "warmup", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be a share from 0 to 1")
        if self.audio_seconds < 0.2:
            raise TrainingError(f"audio_seconds is {self.audio_seconds}; it must be at least 0.2")
        if self.pair and not self.pairs.clips:
            raise TrainingError("--pair needs clips; give --clips with one or more of ravdess, nemo, emogator")
