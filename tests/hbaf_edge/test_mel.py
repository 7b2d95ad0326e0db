"""Log-mel as sound arrives is the log-mel of the recording, and cutting a long one loses nothing at the seams."""

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
    asked=st.lists(st.floats(0.1, 43.0), max_size=3),
)
def test_a_stream_equals_the_recording_bit_for_bit(seconds, cuts, asked):
    """However it is cut into chunks, and whenever somebody asks in between."""
    sound = LONG[: int(seconds * 16_000)]
    stream = MelStream()
    for chunk in np.split(sound, sorted(int(c * len(sound)) for c in cuts)):
        before = stream.heard
        stream.feed(chunk)
        if any(before < a * 16_000 <= stream.heard for a in asked):
            heard = load_audio(sound[: stream.heard], 16_000).samples
            np.testing.assert_array_equal(stream.spectrum(), log_mel(heard))
    whole = load_audio(sound, 16_000).samples
    np.testing.assert_array_equal(stream.samples, whole)
    np.testing.assert_array_equal(stream.spectrum(), log_mel(whole))


@pytest.mark.parametrize("sizes", [[60], [20, 20, 20], [19.9] * 4, [320_001 / 16e3, 20], [0.02] * 1900 + [20], [600]])
def test_large_chunks_are_taken_whole(sizes):
    sound = np.tile(LONG, 14)
    stream, place = MelStream(), 0
    for seconds in sizes:
        stream.feed(sound[place : place + round(seconds * 16_000)])
        place += round(seconds * 16_000)
    assert stream.heard == place
    whole = load_audio(sound[:place], 16_000).samples
    np.testing.assert_array_equal(stream.samples, whole)
    np.testing.assert_array_equal(stream.spectrum(), log_mel(whole))


def test_what_a_stream_holds_does_not_grow():
    stream = MelStream()
    for _ in range(60):
        stream.feed(LONG[:16_000])
        held = stream._held.nbytes + sum(block.nbytes for block in stream._done)
        assert held <= 2 * MAX_SAMPLES * 4 + 250 * 8 * 80 * 8
    assert stream.heard == 60 * 16_000
    assert stream.spectrum().shape == (80, len(stream.samples) // 160)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 12_345])
def test_a_long_sound_is_cut_as_if_all_of_it_had_been_resampled(rate):
    sound = speech(33.7, rate=rate)
    everything = soxr.resample(sound, rate, 16_000)
    cut = load_audio(sound, rate).samples
    assert MAX_SAMPLES - CROP < len(cut) <= MAX_SAMPLES
    assert np.abs(cut - everything[crop_start(len(everything)) :]).max() <= 1e-5
