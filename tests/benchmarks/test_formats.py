"""Each of the forty pairs of container and codec can be read."""

import pytest

from benchmarks.formats import PAIRS, example_clips, read_back


@pytest.fixture(scope="module")
def clips():
    return example_clips({pair.rate for pair in PAIRS})


def test_there_are_forty_different_pairs():
    assert len(PAIRS) == len(set(PAIRS)) == 40


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.container}-{pair.codec}")
def test_a_pair_is_read(pair, clips):
    result = read_back(pair, clips)
    assert result["is_read"], result
