"""How peers are put beside each other: what stands in which rounds, ratios, goals, and what the whole report holds."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import insides, limits, peers, tradeoff, whole
from benchmarks.counted import Count
from benchmarks.peers import GOALS, OURS, STEP, Side
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.series import Series
from hbaf_edge.bench.turns import Bench, total, turn_of
from hbaf_edge.errors import InputError


def test_ratios_are_of_the_same_rounds_and_goals_are_judged(monkeypatch):
    clock = {"round": 0}

    def side(times):
        def run():
            clock["round"] += 1
            return times * (1 + clock["round"])  # the machine slows down all the while

        return run

    fast, slow = "usual encoders, INT8, each utterance encoded once", "our model in PyTorch eager, last 32 turns again"
    sides = {
        STEP: Side(STEP, side(1.0), False, None, ""),
        OURS: Side(OURS, side(10.0), False, 40.0, ""),
        fast: Side(OURS, side(50.0), False, 400.0, ""),
        slow: Side(OURS, side(1000.0), True, None, ""),
    }
    monkeypatch.setattr(peers, "sides", lambda threads: (sides, ["another: not installed"]))
    found = peers.section(Bench([None], 2, "cpu", 31), 31)
    rows = {row[0]: row for row in found.rows}
    assert [row[0] for row in found.rows] == list(sides), "fusion alone comes first"
    assert rows[fast][1] == pytest.approx(5, rel=0.1)
    assert rows[slow][1] == pytest.approx(100, rel=0.2)
    assert rows[fast][6] == f"≥ {GOALS[fast]}: NO"
    assert rows[slow][6] == f"≥ {GOALS[slow]}: yes"
    assert "another: not installed." in found.text
    assert found.better == "higher"
    assert found.measures[fast]["unsteady"], "the machine slowed down"


def test_our_sides_are_the_turns_they_say(tiny):
    with HBAFRuntime(tiny.bundle, threads=1) as runtime:
        fused = insides.fusion(runtime, peers.REACH)()
        assert 0 < fused["utterance"] < fused["total"]
        sides = {"turn": total(turn_of(runtime, past=peers.WINDOW)), "stateless": peers.stateless(runtime)}
        times = {name: np.median([side() for _ in range(3)]) for name, side in sides.items()}
    assert times["stateless"] > 10 * times["turn"]


def test_a_section_of_the_machines_limit_adds_up():
    counts = {name: Count(10**9, 10**6, 10**6, 100) for name in limits.STAGES}
    times = {name: Series.of([4.0] * 10) for name in (*limits.STAGES, "features", "total")}
    found = limits.table(counts, times, 1e12, 1e9, 2)
    assert found.rows[-1][-1] == pytest.approx(4 * 2.0 / 4.0), "a share of one turn's time"
    assert "reached: yes" in found.text


def test_the_whole_report_says_where_a_recorded_section_is_from(monkeypatch, tmp_path):
    names = [name for name, _ in whole.work(Bench([None], 1, "cpu", 6, quick=True), tmp_path)]
    assert names[0] == "peers"
    assert {"stages of a turn", "energy", "limits", "accuracy against cost"} <= set(names)
    assert "LoadGen" not in names
    for section in whole.recorded():
        assert "Recorded 20" in section.text
    monkeypatch.setattr(whole, "RECORDED", tmp_path / "nothing.json")
    with pytest.raises(InputError, match="is no report"):
        whole.recorded()


def test_a_turn_of_one_modality_teaches_no_score():
    from training.corpora.records import UNLABELLED, Utterance

    both = Utterance("hi", 3, "a", Path("a.wav"))
    assert tradeoff.scored_if_both(both).label == 3
    assert tradeoff.scored_if_both(Utterance("hi", 3, "a", None)).label == UNLABELLED
