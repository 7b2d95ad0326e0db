"""Calls that are broken off and programs that end in mid-turn; `python -m benchmarks.interrupts` does many more."""

import pytest

from benchmarks.interrupts import exits, interrupted


def test_interrupted_calls_hang_nobody():
    section = interrupted(60, seed=1)
    assert section.measures["hangs"]["p50"] == 0, section.rows
    assert all(row[2] == 15 for row in section.rows[:4])


@pytest.mark.slow
def test_programs_end_with_their_own_exit_code_and_lose_no_answer():
    section = exits(6, seed=2)
    assert section.measures["aborts"]["p50"] == section.measures["answers lost"]["p50"] == 0, section.rows
