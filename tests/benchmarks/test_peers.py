"""Candidates are compared within the same rounds, goals are checked, and the full report has all sections."""

import pytest

from benchmarks import full_report, internals, machine_limit, peers, tradeoff
from benchmarks.operation_counts import Count
from benchmarks.peers import ENCODERS, FUSION, GOALS, STATE, TURN, Candidate
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.series import Series
from hbaf_edge.bench.turns import Bench
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError
from training.corpora.records import Dialogue, EvaluationSet, Utterance


def test_a_ratio_uses_the_same_rounds_and_goals_are_checked(monkeypatch):
    clock = {"calls": 0}

    def on_a_slowing_machine(milliseconds):
        def run():
            clock["calls"] += 1
            return milliseconds * (1 + clock["calls"])

        return run

    fast = "RoBERTa + wav2vec2, random weights, INT8: one utterance, no fusion"
    slow = "our model in PyTorch float32: the last 32 turns as one batch"
    candidates = {
        FUSION: Candidate(STATE, FUSION, on_a_slowing_machine(1.0), False, ""),
        TURN: Candidate(STATE, TURN, on_a_slowing_machine(10.0), False, peers.OURS),
        fast: Candidate(ENCODERS, TURN, on_a_slowing_machine(50.0), False, peers.OURS),
        slow: Candidate(STATE, TURN, on_a_slowing_machine(1000.0), True, ""),
    }
    monkeypatch.setattr(peers, "candidates", lambda threads: (candidates, ["another: not installed"]))
    state, encoders, software = peers.sections(Bench([None], 2, "cpu", 31), 31)
    rows = {row[0]: row for section in (state, encoders) for row in section.rows}
    assert [row[0] for row in state.rows] == [FUSION, TURN, slow]
    assert [row[0] for row in encoders.rows] == [TURN, fast]
    assert rows[fast][1] == pytest.approx(5, rel=0.1)
    assert rows[slow][1] == pytest.approx(100, rel=0.2)
    assert rows[fast][6] == f"≥ {GOALS[fast]}: NO"
    assert rows[slow][6] == f"≥ {GOALS[slow]}: yes"
    assert "another: not installed." in software.text
    assert state.better == "higher"
    assert encoders.measures[fast]["unsteady"], "the machine became slower"
    assert state.figure is None, "no other row has the precision and the runtime of ours"
    assert list(encoders.figure["parts"]) == [TURN, fast]


def test_without_state_all_turns_are_computed_again(tiny):
    """How long they take is measured, not asserted."""
    with HBAFRuntime(tiny.bundle, threads=1) as runtime:
        calls, run = [], peers.stateless(runtime)
        with runtime.tap(lambda graph, inputs, outputs: calls.append((graph, len(next(iter(outputs.values())))))):
            assert run() > 0
        turns = sum(size for graph, size in calls if graph == "dialogue")
        assert turns == peers.WINDOW
        assert internals.fusion_of_all(runtime, 5, 2)() > 0
        times = internals.fusion(runtime, peers.RECEPTIVE_FIELD)()
        assert 0 < times["utterance"] < times["total"]


def test_the_share_of_the_machines_limit_is_the_limit_divided_by_a_turns_time():
    counts = {name: Count(10**9, 10**6, 10**6, 100) for name in machine_limit.STAGES}
    times = {name: Series.of([4.0] * 10) for name in (*machine_limit.STAGES, "features", "total")}
    section = machine_limit.table(counts, times, 1e12, 1e9, 2)
    assert section.rows[-1][-1] == pytest.approx(4 * 2.0 / 4.0)
    assert "reached: yes" in section.text


def test_the_full_report_shows_recorded_accuracy_only_of_its_own_bundle(monkeypatch, tmp_path):
    bench = Bench([None], 1, "cpu", 6, quick=True)
    names = [name for name, _ in full_report.report_sections(bench)]
    assert names[0] == "peers"
    assert {"stages of a turn", "energy", "limits", "accuracy against cost"} <= set(names)
    for section in full_report.recorded(load_bundle(None).model_key):
        assert "Recorded 20" in section.text
    with pytest.raises(InputError, match="is of bundle"):
        full_report.recorded("another")
    monkeypatch.setattr(full_report, "RECORDED", tmp_path / "missing.json")
    with pytest.raises(InputError, match=r"missing\.json"):
        full_report.recorded("any")


def test_units_are_never_mixed_and_both_modalities_have_no_score():
    sets = {"meld dev, text": EvaluationSet("text", [Dialogue("d", "dev", (Utterance("hi", 3), Utterance("x", -1)))]),
            "ravdess dev, audio": EvaluationSet("audio", [Dialogue("c", "dev", (Utterance("", 3),))])}  # fmt: skip
    titles, turns = tradeoff.score_titles(sets)
    assert turns == {"audio and text": 0, "text alone": 1, "audio alone": 1}
    assert titles["text alone"] == "weighted F1 of 1 turns of meld dev, text, which also chose the model"
    assert "no natural pairs" in titles["audio and text"]
    choices = [{"name": f"int8, {inputs}", "given": inputs, "precision": "int8", "threads": 1, "p50_ms": 1.0,
                "p90_ms": 1.0, "megabytes": 1, "peak_mb": 2, "score": None if "and" in inputs else 0.5}
               for inputs in titles]  # fmt: skip
    times = {c["name"]: Series.of([1.0] * 5) for c in choices}
    both, text, audio = tradeoff.sections(choices, times, titles)
    assert both.figure is None
    assert text.figure["y_title"] == "weighted F1"
    assert audio.figure["y_title"] == "UAR"
