"""The learner a run starts with: afresh on its encoders, or from a checkpoint, with what does not fit refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from training import augment, checkpoint, encoders, losses
from training.config import ModelConfig, TrainConfig
from training.corpora.records import UNLABELLED, Corpus
from training.errors import TrainingError
from training.learner import Learner, tune
from training.model import HBAF


def begin(
    config: TrainConfig, corpus: Corpus, model: ModelConfig | None, init: Path | None
) -> tuple[Learner, dict[str, Any]]:
    """The learner a run starts with, and its lineage.

    That is: corpora its weights will have seen, encoders not as packaged, modalities shown before.
    """
    seen, shown = list(config.corpora), []
    for folder in config.teacher:
        seen += checkpoint.describe(Path(folder))[0].get("corpora", ["unknown"])
    seen = list(dict.fromkeys(seen))
    tuned = [role for role in ("text", "audio") if getattr(config, f"{role}_tuning") != "frozen"]
    if init:
        stored = checkpoint.load(init)
        check_flags(model, stored.hbaf.config, init)
        hbaf, text, audio = relabelled(stored.hbaf, corpus.labels), stored.text, stored.audio
        seen = list(dict.fromkeys([*stored.about.get("corpora", ["unknown"]), *seen]))
        tuned = list(dict.fromkeys([*stored.about.get("tuned", []), *tuned]))
        shown = list(stored.about.get("shown", ["audio", "text"]))
    else:
        hbaf, text, audio = _afresh(corpus, model or ModelConfig())
    check_kind(corpus, hbaf.config)
    text, audio = tune(text, config.text_tuning, config.lora_rank), tune(audio, config.audio_tuning, config.lora_rank)
    counts = Counter(t.label for d in corpus.split("train") for t in d.turns if t.label != UNLABELLED)
    balance = losses.balance_of(torch.tensor([counts[i] for i in range(len(corpus.labels))]), config.loss.balance)
    learner = Learner(hbaf, text, audio, config.loss, balance)
    learner.augment = augment.Augment() if config.augment and config.audio_tuning != "frozen" else None
    learner.audio_seconds = config.audio_seconds
    return learner, {"corpora": seen, "tuned": tuned, "shown": shown}


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
