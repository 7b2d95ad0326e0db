"""Many texts or clips through an encoder, those of like lengths together, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from training import batches, encoders
from training.words import Tokens

TEXTS, CLIPS = 16, 8  # encoded at once


def texts(encoder: nn.Module, found: Sequence[Tokens]) -> Iterator[tuple[int, Tensor]]:
    """Places in `found`, in another order, and states (T, states, dim)."""
    device = next(encoder.parameters()).device
    order = sorted(range(len(found)), key=lambda i: len(found[i].ids))
    for rows in batches.groups(order, TEXTS):
        ids, mask = batches.pad([found[i].ids for i in rows], (), 1, device)
        for i, row in zip(rows, encoders.text_states(encoder, ids, mask)):
            yield i, row[: len(found[i].ids)]


def clips(encoder: nn.Module, prepared: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Places in `prepared`, in another order, and states (frames, states, dim)."""
    audio = cast(Any, encoder)
    device = next(encoder.parameters()).device
    order = sorted(range(len(prepared)), key=lambda i: prepared[i].shape[-1])
    for rows in batches.groups(order, CLIPS):
        lengths = torch.tensor([prepared[i].shape[-1] for i in rows], device=device)
        longest = int(lengths.max())
        padded = torch.stack([nn.functional.pad(prepared[i], (0, longest - prepared[i].shape[-1])) for i in rows])
        mask = torch.arange(longest, device=device) < lengths[:, None]
        states = encoders.audio_states(audio, padded.to(device), None if bool(mask.all()) else mask)
        for i, row in zip(rows, states):
            yield i, row[: audio.frames(prepared[i].shape[-1])]
