"""Sound that expresses nothing in particular: meeting talk from AMI (CC BY 4.0), noise and, where espeak-ng is
installed, sentences read by synthetic voices.

It partners texts of any label as *uninformative* audio, so that the gate learns to lean on the words where the voice
says nothing, and it stands for neutral by itself. Without it, an acted-speech model calls ordinary speech angry.
"""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console

from hbaf_edge.audio import SAMPLE_RATE
from training.config import NEUTRAL
from training.corpora.records import Utterance, data_folder
from training.files import cache_folder

SECONDS = 3.0
SPOKEN = 150
# The voices of the example conversation (+f3, +m3) are left out: the demo is to be new to the model.
VOICES = [f"{accent}+{variant}" for accent in ("en-us", "en-gb") for variant in ("f1", "f2", "f4", "m1", "m2", "m4")]


def load(sentences: list[str]) -> list[Utterance]:
    """Clips of about three seconds, made once for these sentences in the cache folder; label neutral, no words."""

    def make(folder: Path) -> None:
        _cut_meetings(folder)
        _make_noise(folder)
        _speak(sentences, folder)

    clips = _made_once(hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16], make)
    return [Utterance("", NEUTRAL, "plain", path) for path in clips]


def unheard_noise() -> list[Path]:
    """Noise of the same kinds that no training has heard, for tests of what a misleading partner does."""
    return _made_once("unheard", lambda folder: _make_noise(folder, seed=1))


def _made_once(name: str, make: Callable[[Path], None]) -> list[Path]:
    """The clips of a folder of the cache, which is filled where it is not complete."""
    folder = cache_folder() / "plain" / name
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        (folder / "complete").touch()
    return sorted(folder.glob("*.flac"))


def _cut_meetings(folder: Path) -> None:
    """AMI's training files in pieces."""
    for path in sorted((data_folder() / "ami").glob("trn*.flac")):
        samples, rate = soundfile.read(path, dtype="float32")
        size = int(SECONDS * rate)
        for number in range(len(samples) // size):
            piece = samples[number * size : (number + 1) * size]
            soundfile.write(folder / f"{path.stem}_{number}.flac", piece, rate)


def _make_noise(folder: Path, seed: int = 0) -> None:
    """White and brown noise from −50 to −14 dB: rooms, fans, microphones."""
    rng = np.random.default_rng(seed)
    for number in range(30):
        noise = rng.standard_normal(int(rng.uniform(1, SECONDS) * SAMPLE_RATE))
        if number % 2:
            noise = np.cumsum(noise)
            noise -= np.linspace(noise[0], noise[-1], noise.size)
        loud = 10 ** (rng.uniform(-50, -14) / 20)
        soundfile.write(folder / f"noise_{number}.flac", loud * noise / np.abs(noise).max(), SAMPLE_RATE)


def _speak(sentences: list[str], folder: Path) -> None:
    """Sentences by synthetic voices of many kinds, whose pitch and speed are drawn at random and mean nothing."""
    if shutil.which("espeak-ng") is None:
        Console(stderr=True).print("espeak-ng is not installed: training goes on without synthetic voices")
        return
    rng = random.Random(0)
    for number, sentence in enumerate(rng.sample(sentences, min(SPOKEN, len(sentences)))):
        how = ["-v", rng.choice(VOICES), "-s", str(rng.randint(120, 210)), "-p", str(rng.randint(20, 90))]
        command = ["espeak-ng", *how, "--stdout", "--", sentence]
        made = subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603 - no shell, fixed program
        samples, rate = soundfile.read(io.BytesIO(made), dtype="float32")
        soundfile.write(folder / f"spoken_{number}.flac", samples, rate)
