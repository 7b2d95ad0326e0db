"""Sounds as other rooms and other hurries would have them, through torchaudio; for training only.

Everything is drawn from torch's generator, which the loop seeds for each epoch and process.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio import functional, transforms

from hbaf_edge.audio import SAMPLE_RATE

SPEEDS = (0.85, 0.9, 0.95, 1.0, 1.0, 1.05, 1.1, 1.15)
NOISE_DB = (10.0, 35.0)  # signal over noise
REVERB_SECONDS = (0.1, 0.5)
# Bins and frames. Short: Whisper's states of a clip of three seconds change so much with two bands of 12 bins and
# 25 frames that a head trained without loses half of what it knew.
HIDDEN = (8, 15)


def chance(share: float) -> bool:
    """True in that share of calls."""
    return bool(torch.rand(()) < share)


def between(low: float, high: float) -> float:
    """Evenly distributed."""
    return float(low + (high - low) * torch.rand(()))


class Augment:
    """Speed in most clips, noise and reverberation in some: (samples,) -> (other samples,)."""

    def __init__(self) -> None:
        self.speed = transforms.SpeedPerturbation(SAMPLE_RATE, SPEEDS)

    def __call__(self, samples: Tensor) -> Tensor:
        changed = self.speed(samples)[0]
        if chance(0.3):
            changed = reverberate(changed, between(*REVERB_SECONDS))
        if chance(0.5):
            snr = torch.tensor(between(*NOISE_DB))
            changed = functional.add_noise(changed, torch.randn_like(changed), snr)
        return changed * 10 ** (between(-6, 6) / 20)


def reverberate(samples: Tensor, seconds: float) -> Tensor:
    """Convolve with a made room: noise that falls by 60 dB in `seconds`, behind the direct sound.

    >>> reverberate(torch.ones(100), 0.2).shape
    torch.Size([100])
    """
    length = int(seconds * SAMPLE_RATE)
    decay = torch.exp(-6.9 * torch.arange(length) / length)
    room = torch.randn(length) * decay * 0.05
    room[0] = 1.0
    return functional.fftconvolve(samples, room)[: samples.shape[-1]]


def hide(mel: Tensor) -> Tensor:
    """SpecAugment: a random band of bins and one of frames take the mean, (bins, frames) -> (bins, frames)."""
    mean = float(mel.mean())
    for axis, size in enumerate(HIDDEN, 1):
        mel = functional.mask_along_axis(mel[None], min(size, mel.shape[axis - 1]), mean, axis)[0]
    return mel
