"""Log-mel of audio that is still arriving equals log-mel of the recording, and cropping keeps the frames."""

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from hbaf_edge.audio import CROP, MAX_SAMPLES, crop_start, load_audio
from hbaf_edge.mel import MelStream, log_mel
from tests.conftest import speech

LONG = speech(43.0)


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.floats(0.1, 43.0),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    read_times=st.lists(st.floats(0.1, 43.0), max_size=3),
)
def test_a_stream_equals_the_recording_bit_for_bit(seconds, cuts, read_times):
    """For any chunks, also when spectra are read in between."""
    audio = LONG[: int(seconds * 16_000)]
    stream = MelStream()
    for chunk in np.split(audio, sorted(int(c * len(audio)) for c in cuts)):
        before = stream.sample_count
        stream.feed(chunk)
        if any(before < t * 16_000 <= stream.sample_count for t in read_times):
            samples = load_audio(audio[: stream.sample_count], 16_000).samples
            np.testing.assert_array_equal(stream.spectrum(), log_mel(samples))
    samples = load_audio(audio, 16_000).samples
    np.testing.assert_array_equal(stream.samples, samples)
    np.testing.assert_array_equal(stream.spectrum(), log_mel(samples))


@pytest.mark.parametrize("sizes", [[60], [20, 20, 20], [19.9] * 4, [320_001 / 16e3, 20], [0.02] * 1900 + [20], [600]])
def test_a_stream_equals_the_recording_when_chunks_are_large(sizes):
    audio = np.tile(LONG, 14)
    stream, position = MelStream(), 0
    for seconds in sizes:
        stream.feed(audio[position : position + round(seconds * 16_000)])
        position += round(seconds * 16_000)
    assert stream.sample_count == position
    samples = load_audio(audio[:position], 16_000).samples
    np.testing.assert_array_equal(stream.samples, samples)
    np.testing.assert_array_equal(stream.spectrum(), log_mel(samples))


def test_the_memory_of_a_stream_is_bounded():
    stream = MelStream()
    for _ in range(60):
        stream.feed(LONG[:16_000])
        nbytes = stream._buffer.nbytes + sum(block.nbytes for block in stream._final_blocks)
        assert nbytes <= 2 * MAX_SAMPLES * 4 + 250 * 8 * 80 * 8
    assert stream.sample_count == 60 * 16_000
    assert stream.spectrum().shape == (80, len(stream.samples) // 160)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 12_345])
def test_cropping_before_resampling_equals_cropping_after_it(rate):
    audio = speech(33.7, rate=rate)
    resampled = soxr.resample(audio, rate, 16_000)
    cropped = load_audio(audio, rate).samples
    assert MAX_SAMPLES - CROP < len(cropped) <= MAX_SAMPLES
    assert np.abs(cropped - resampled[crop_start(len(resampled)) :]).max() <= 1e-5
