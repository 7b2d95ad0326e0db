"""The training loss CE + λ_abs·L_abs + λ_rel·L_rel + λ_uni·(CE_a + CE_t), as described in docs/model.md."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.config import LossWeights
from training.layers import AUDIO, TEXT
from training.model import HBAF, Batch, Output


def classification(logits: Tensor, labels: Tensor, weights: LossWeights, balance: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over labelled turns; 0 if there are none.

    Shapes: logits (U, labels), labels (U,) with −1 for unknown, balance (labels,) weight of each label or None.
    """
    is_labelled = labels >= 0
    if not is_labelled.any():
        return logits.sum() * 0.0
    logits, labels = logits[is_labelled], labels[is_labelled]
    loss = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=weights.smoothing)
    if balance is not None:
        loss = loss * balance[labels]
    return loss.mean()


def label_weights(counts: Tensor, power: float) -> Tensor | None:
    """Weight of each label, proportional to (1 / count)^power, with mean 1 over utterances; None for power 0.

    >>> label_weights(torch.tensor([3, 1]), 1.0)
    tensor([0.6667, 2.0000])
    """
    if power == 0:
        return None
    raw = counts.clamp(min=1).float() ** -power
    return raw * counts.sum() / (raw * counts).sum()


def absolute_contrast(audio: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of matched pairs; negatives with the label of the anchor are excluded.

    Shapes: audio and text (P, c), L2-normalised; labels (P,). Source: docs/model.md, "Contrastive module".
    """
    scores = audio @ text.T / temperature
    same_label = labels[:, None] == labels[None]
    same_label.fill_diagonal_(False)
    scores = scores.masked_fill(same_label, -3.0e4)
    matched = torch.arange(len(labels), device=labels.device)
    return (functional.cross_entropy(scores, matched) + functional.cross_entropy(scores.T, matched)) / 2


def relative_contrast(audio: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Symmetric KL divergence of the audio-audio and the text-text similarity distributions, without the diagonal.

    Shapes: (P, c) each, L2-normalised, P >= 3.
    """
    off_diagonal = ~torch.eye(len(audio), dtype=torch.bool, device=audio.device)

    def log_distribution(codes: Tensor) -> Tensor:
        scores = (codes @ codes.T / temperature)[off_diagonal].unflatten(0, (len(codes), -1))
        return torch.log_softmax(scores, -1)

    p, q = log_distribution(audio), log_distribution(text)
    forward = functional.kl_div(q, p, log_target=True, reduction="batchmean")
    backward = functional.kl_div(p, q, log_target=True, reduction="batchmean")
    return (forward + backward) / 2


def total(model: HBAF, batch: Batch, output: Output, weights: LossWeights, balance: Tensor | None = None) -> Tensor:
    """The training loss of a batch, a mean over its labelled turns."""
    labels = batch.labels
    loss = classification(output.logits, labels, weights, balance)
    is_labelled = labels >= 0
    has_audio = batch.audio_mask.any(1) & batch.is_matched[:, AUDIO] & is_labelled
    has_text = batch.text_mask.any(1) & batch.is_matched[:, TEXT] & is_labelled
    for logits, is_used in ((output.audio_logits, has_audio), (output.text_logits, has_text)):
        if weights.unimodal and is_used.any():
            loss = loss + weights.unimodal * classification(logits[is_used], labels[is_used], weights, balance)
    pairs = has_audio & has_text
    if pairs.sum() >= 3 and (weights.absolute or weights.relative):
        audio, text = (
            functional.normalize(model.contrast[m](code[pairs]), dim=-1)
            for m, code in ((AUDIO, output.audio_code), (TEXT, output.text_code))
        )
        loss = loss + weights.absolute * absolute_contrast(audio, text, labels[pairs], weights.temperature)
        loss = loss + weights.relative * relative_contrast(audio, text, weights.temperature)
    return loss
