"""Augmentation of audio for training, through torchaudio: speed, noise, reverberation and SpecAugment.

All random numbers come from torch's generator, which the training loop seeds for each epoch and process.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio import functional, transforms

from hbaf_edge.audio import SAMPLE_RATE

SPEEDS = (0.85, 0.9, 0.95, 1.0, 1.0, 1.05, 1.1, 1.15)
SNR_DB = (10.0, 35.0)
REVERB_SECONDS = (0.1, 0.5)
# Largest masked bands: mel bins and frames. Wider ones harm: with two bands of 12 bins and 25 frames, Whisper's states
# of a three-second clip change so much that a head trained on clean clips loses half of its gain.
MASK_SIZES = (8, 15)


def happens(probability: float) -> bool:
    """Return True with this probability."""
    return bool(torch.rand(()) < probability)


def uniform(low: float, high: float) -> float:
    """Return a uniformly distributed random number."""
    return float(low + (high - low) * torch.rand(()))


class Augment:
    """Change speed, reverberation, noise and loudness at random: (samples,) -> (other number of samples,)."""

    def __init__(self) -> None:
        self.speed = transforms.SpeedPerturbation(SAMPLE_RATE, SPEEDS)

    def __call__(self, samples: Tensor) -> Tensor:
        changed = self.speed(samples)[0]
        if happens(0.3):
            changed = reverberate(changed, uniform(*REVERB_SECONDS))
        if happens(0.5):
            snr = torch.tensor(uniform(*SNR_DB))
            changed = functional.add_noise(changed, torch.randn_like(changed), snr)
        return changed * 10 ** (uniform(-6, 6) / 20)


def reverberate(samples: Tensor, seconds: float) -> Tensor:
    """Convolve with a synthetic room response: the direct sound, then noise that decays by 60 dB in `seconds`.

    >>> reverberate(torch.ones(100), 0.2).shape
    torch.Size([100])
    """
    length = int(seconds * SAMPLE_RATE)
    decay = torch.exp(-6.9 * torch.arange(length) / length)
    room = torch.randn(length) * decay * 0.05
    room[0] = 1.0
    return functional.fftconvolve(samples, room)[: samples.shape[-1]]


def mask_spectrogram(mel: Tensor) -> Tensor:
    """SpecAugment: set a random band of bins and one of frames to the mean, (bins, frames) -> (bins, frames)."""
    mean = float(mel.mean())
    for axis, size in enumerate(MASK_SIZES, 1):
        mel = functional.mask_along_axis(mel[None], min(size, mel.shape[axis - 1]), mean, axis)[0]
    return mel
