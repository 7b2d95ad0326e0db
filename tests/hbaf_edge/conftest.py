"""A runtime of the tiny model, and audio files for it."""

import pytest
import soundfile

from hbaf_edge import HBAFRuntime
from tests.conftest import speech


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for seed, seconds in enumerate((0.3, 0.97, 1.6)):
        paths.append(folder / f"{seed}.wav")
        soundfile.write(paths[-1], speech(seconds, seed=seed), 16_000, subtype="FLOAT")
    return paths


@pytest.fixture(scope="module")
def tiny_runtime(tiny):
    return HBAFRuntime(tiny.bundle, threads=1)
