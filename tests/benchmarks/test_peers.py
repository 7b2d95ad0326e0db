"""Candidates are compared within the same rounds, goals are checked, and the full report has all sections."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import full_report, internals, machine_limit, peers, tradeoff
from benchmarks.operation_counts import Count
from benchmarks.peers import FUSION, GOALS, TURN, Candidate
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.series import Series
from hbaf_edge.bench.turns import Bench, repeatable_turn, total_ms
from hbaf_edge.errors import InputError
from training.corpora.records import UNLABELLED, Utterance


def test_a_ratio_uses_the_same_rounds_and_goals_are_checked(monkeypatch):
    clock = {"calls": 0}

    def on_a_slowing_machine(milliseconds):
        def run():
            clock["calls"] += 1
            return milliseconds * (1 + clock["calls"])

        return run

    fast = "usual encoders, INT8, each utterance encoded once"
    slow = "our model in PyTorch eager, last 32 turns recomputed"
    candidates = {
        FUSION: Candidate(FUSION, on_a_slowing_machine(1.0), False, None, ""),
        TURN: Candidate(TURN, on_a_slowing_machine(10.0), False, 40.0, ""),
        fast: Candidate(TURN, on_a_slowing_machine(50.0), False, 400.0, ""),
        slow: Candidate(TURN, on_a_slowing_machine(1000.0), True, None, ""),
    }
    monkeypatch.setattr(peers, "candidates", lambda threads: (candidates, ["another: not installed"]))
    section = peers.section(Bench([None], 2, "cpu", 31), 31)
    rows = {row[0]: row for row in section.rows}
    assert list(rows) == list(candidates), "only the fusion comes first"
    assert rows[fast][1] == pytest.approx(5, rel=0.1)
    assert rows[slow][1] == pytest.approx(100, rel=0.2)
    assert rows[fast][6] == f"≥ {GOALS[fast]}: NO"
    assert rows[slow][6] == f"≥ {GOALS[slow]}: yes"
    assert "another: not installed." in section.text
    assert section.better == "higher"
    assert section.measures[fast]["unsteady"], "the machine became slower"


def test_our_candidates_take_plausible_times(tiny):
    with HBAFRuntime(tiny.bundle, threads=1) as runtime:
        times = internals.fusion(runtime, peers.RECEPTIVE_FIELD)()
        assert 0 < times["utterance"] < times["total"]
        runs = {"turn": total_ms(repeatable_turn(runtime, past=peers.WINDOW)), "stateless": peers.stateless(runtime)}
        medians = {name: np.median([run() for _ in range(3)]) for name, run in runs.items()}
    assert medians["stateless"] > 10 * medians["turn"]


def test_the_share_of_the_machines_limit_is_the_limit_divided_by_a_turns_time():
    counts = {name: Count(10**9, 10**6, 10**6, 100) for name in machine_limit.STAGES}
    times = {name: Series.of([4.0] * 10) for name in (*machine_limit.STAGES, "features", "total")}
    section = machine_limit.table(counts, times, 1e12, 1e9, 2)
    assert section.rows[-1][-1] == pytest.approx(4 * 2.0 / 4.0)
    assert "reached: yes" in section.text


def test_the_full_report_dates_its_recorded_section(monkeypatch, tmp_path):
    bench = Bench([None], 1, "cpu", 6, quick=True)
    names = [name for name, _ in full_report.report_sections(bench, tmp_path)]
    assert names[0] == "peers"
    assert {"stages of a turn", "energy", "limits", "accuracy against cost"} <= set(names)
    assert "LoadGen" not in names
    for section in full_report.recorded():
        assert "Recorded 20" in section.text
    monkeypatch.setattr(full_report, "RECORDED", tmp_path / "missing.json")
    with pytest.raises(InputError, match=r"missing\.json"):
        full_report.recorded()


def test_a_turn_with_one_modality_is_not_scored():
    both = Utterance("hi", 3, "a", Path("a.wav"))
    assert tradeoff.without_label_unless_both(both).label == 3
    assert tradeoff.without_label_unless_both(Utterance("hi", 3, "a", None)).label == UNLABELLED
