"""Interrupted calls and programs that exit during a turn; `python -m benchmarks.interrupts` runs many more."""

import pytest

from benchmarks.interrupts import exits, interrupted_calls


def test_no_call_hangs_after_other_calls_were_interrupted():
    section = interrupted_calls(60, seed=1)
    assert section.measures["hangs"]["p50"] == 0, section.rows
    assert all(row[2] == 15 for row in section.rows[:4])


@pytest.mark.slow
def test_a_program_that_exits_during_a_turn_has_its_own_exit_code_and_loses_no_result():
    section = exits(6, seed=2)
    assert section.measures["aborts"]["p50"] == section.measures["results lost"]["p50"] == 0, section.rows
