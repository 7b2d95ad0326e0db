"""CE + λ_abs·L_abs + λ_rel·L_rel + λ_uni·(CE_a + CE_t), as training/MODEL.md has it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.config import LossWeights
from training.layers import AUDIO, TEXT
from training.model import HBAF, Batch, Output


def classification(logits: Tensor, labels: Tensor, weights: LossWeights, balance: Tensor | None = None) -> Tensor:
    """Cross-entropy over labelled turns; 0 where there is none.

    Shapes: logits (U, labels), labels (U,) with −1 for unknown, balance (labels,) weight of each label or None.
    """
    known = labels >= 0
    if not known.any():
        return logits.sum() * 0.0
    logits, labels = logits[known], labels[known]
    each = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=weights.smoothing)
    if balance is not None:
        each = each * balance[labels]
    return each.mean()


def balance_of(counts: Tensor, power: float) -> Tensor | None:
    """(labels,) utterances of each label -> weights (1 / count)^power whose mean over utterances is 1.

    >>> balance_of(torch.tensor([3, 1]), 1.0)
    tensor([0.6667, 2.0000])
    """
    if power == 0:
        return None
    raw = counts.clamp(min=1).float() ** -power
    return raw * counts.sum() / (raw * counts).sum()


def absolute_contrast(audio: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of matched pairs; negatives that share the anchor's label are left out.

    Shapes: audio and text (P, c), L2-normalised; labels (P,). Source: training/MODEL.md, "Contrastive module".
    """
    scores = audio @ text.T / temperature
    same = labels[:, None] == labels[None]
    same.fill_diagonal_(False)
    scores = scores.masked_fill(same, -3.0e4)
    matched = torch.arange(len(labels), device=labels.device)
    return (functional.cross_entropy(scores, matched) + functional.cross_entropy(scores.T, matched)) / 2


def relative_contrast(audio: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Symmetric KL between the audio-audio and the text-text similarity distributions, diagonal left out.

    Shapes: (P, c) each, L2-normalised, P >= 3.
    """
    off_diagonal = ~torch.eye(len(audio), dtype=torch.bool, device=audio.device)

    def distribution(codes: Tensor) -> Tensor:
        scores = (codes @ codes.T / temperature)[off_diagonal].unflatten(0, (len(codes), -1))
        return torch.log_softmax(scores, -1)

    p, q = distribution(audio), distribution(text)
    there = functional.kl_div(q, p, log_target=True, reduction="batchmean")
    back = functional.kl_div(p, q, log_target=True, reduction="batchmean")
    return (there + back) / 2


def total(model: HBAF, batch: Batch, output: Output, weights: LossWeights, balance: Tensor | None = None) -> Tensor:
    """The whole training loss of a batch: a mean over its labelled turns."""
    labels = batch.labels
    loss = classification(output.logits, labels, weights, balance)
    known = labels >= 0
    has_audio = batch.audio_mask.any(1) & batch.honest[:, AUDIO] & known
    has_text = batch.text_mask.any(1) & batch.honest[:, TEXT] & known
    for logits, present in ((output.audio_logits, has_audio), (output.text_logits, has_text)):
        if weights.unimodal and present.any():
            loss = loss + weights.unimodal * classification(logits[present], labels[present], weights, balance)
    pairs = has_audio & has_text
    if pairs.sum() >= 3 and (weights.absolute or weights.relative):
        audio, text = (
            functional.normalize(model.contrast[m](code[pairs]), dim=-1)
            for m, code in ((AUDIO, output.audio_code), (TEXT, output.text_code))
        )
        loss = loss + weights.absolute * absolute_contrast(audio, text, labels[pairs], weights.temperature)
        loss = loss + weights.relative * relative_contrast(audio, text, weights.temperature)
    return loss
