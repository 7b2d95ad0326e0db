"""Each of the forty containers and codecs of the list is read."""

import pytest

from benchmarks.formats import PAIRS, example, read_back


@pytest.fixture(scope="module")
def spoken():
    return example({pair.rate for pair in PAIRS})


def test_the_list_holds_forty():
    assert len(PAIRS) == len(set(PAIRS)) == 40


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.container}-{pair.codec}")
def test_read(pair, spoken):
    result = read_back(pair, spoken)
    assert result["read"], result
