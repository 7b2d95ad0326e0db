"""Audio without a particular emotion: meeting speech from AMI (CC BY 4.0), noise and, if espeak-ng is installed,
sentences read by synthetic voices.

It is paired with texts of any label as *uninformative* audio, so that the gate learns to rely on the text, and it is
labelled neutral when it is used without text. Without it, a model of acted speech calls ordinary speech angry.
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
SYNTHETIC_CLIPS = 150
# The voices of the example conversation (+f3, +m3) are excluded, so that the demo is not training data.
VOICES = [f"{accent}+{variant}" for accent in ("en-us", "en-gb") for variant in ("f1", "f2", "f4", "m1", "m2", "m4")]


def load(sentences: list[str]) -> list[Utterance]:
    """Neutral clips of up to three seconds without text, generated once per set of sentences in the cache folder."""

    def generate(folder: Path) -> None:
        _cut_meetings(folder)
        _generate_noise(folder)
        _synthesise(sentences, folder)

    clips = _generate_once(hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16], generate)
    return [Utterance("", NEUTRAL, "plain", path) for path in clips]


def unseen_noise() -> list[Path]:
    """Noise of the same kinds that is never used in training, to test mismatched audio."""
    return _generate_once("unheard", lambda folder: _generate_noise(folder, seed=1))


def _generate_once(name: str, generate: Callable[[Path], None]) -> list[Path]:
    """The clips of a cache folder; generate them unless the folder is complete."""
    folder = cache_folder() / "plain" / name
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        generate(folder)
        (folder / "complete").touch()
    return sorted(folder.glob("*.flac"))


def _cut_meetings(folder: Path) -> None:
    """Cut AMI's training files into pieces."""
    for path in sorted((data_folder() / "ami").glob("trn*.flac")):
        samples, rate = soundfile.read(path, dtype="float32")
        size = int(SECONDS * rate)
        for number in range(len(samples) // size):
            piece = samples[number * size : (number + 1) * size]
            soundfile.write(folder / f"{path.stem}_{number}.flac", piece, rate)


def _generate_noise(folder: Path, seed: int = 0) -> None:
    """White and brown noise from −50 to −14 dB, as of rooms, fans and microphones."""
    rng = np.random.default_rng(seed)
    for number in range(30):
        noise = rng.standard_normal(int(rng.uniform(1, SECONDS) * SAMPLE_RATE))
        if number % 2:
            noise = np.cumsum(noise)
            noise -= np.linspace(noise[0], noise[-1], noise.size)
        peak = 10 ** (rng.uniform(-50, -14) / 20)
        soundfile.write(folder / f"noise_{number}.flac", peak * noise / np.abs(noise).max(), SAMPLE_RATE)


def _synthesise(sentences: list[str], folder: Path) -> None:
    """Sentences by synthetic voices of random kind, pitch and speed."""
    if shutil.which("espeak-ng") is None:
        Console(stderr=True).print("espeak-ng is not installed: training continues without synthetic voices")
        return
    rng = random.Random(0)
    for number, sentence in enumerate(rng.sample(sentences, min(SYNTHETIC_CLIPS, len(sentences)))):
        voice = ["-v", rng.choice(VOICES), "-s", str(rng.randint(120, 210)), "-p", str(rng.randint(20, 90))]
        command = ["espeak-ng", *voice, "--stdout", "--", sentence]
        wav = subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603 - no shell, fixed program
        samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
        soundfile.write(folder / f"spoken_{number}.flac", samples, rate)
