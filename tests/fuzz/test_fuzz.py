"""A short, repeatable run of the fuzzer; `make fuzz` runs longer."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import attempt, damage
from tests.fuzz.targets import targets


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", ["audio", "bundle", "manifest", "state", "lines", "transcript"])
def test_damaged_input_gives_a_result_or_an_hbaf_error(name, all_targets, capfd):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.integers(0, 2**32))
    def run(seed):
        rng = random.Random(seed)
        seeds = all_targets[name].seeds
        attempt(all_targets[name], damage(rng.choice(seeds), rng.choice(seeds), rng))

    run()
    assert capfd.readouterr().err == ""
