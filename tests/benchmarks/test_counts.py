"""What is counted: operations against the model by hand, budgets that hold and that fail, LoadGen's verdicts."""

import json
import shutil

import pytest

from benchmarks import counted, guard
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError


@pytest.fixture(scope="module")
def counts():
    return counted.count(load_bundle(None))


def test_operations_are_those_of_the_encoders_by_hand(counts):
    """Whisper tiny.en on 150 frames: per layer four projections and a feed-forward of four times the width in INT8."""
    d, frames, layers, heads = 384, 150, 4, 6
    assert counts["audio"].integer == layers * 2 * frames * (4 * d * d + 8 * d * d)
    attention = layers * 2 * 2 * heads * frames * frames * (d // heads)
    stem = 2 * 300 * d * 80 * 3 + 2 * 150 * d * d * 3
    assert counts["audio"].floating == pytest.approx(attention + stem, rel=0.01)
    assert counts["text"].integer == pytest.approx(6 * 2 * 14 * 12 * d * d, rel=0.01)


@pytest.mark.slow
def test_the_budgets_hold_here(counts):
    recorded = json.loads(guard.BUDGETS.read_text())
    found = {**guard.graph_counts(), **guard.python_counts()}
    if shutil.which("valgrind"):
        found |= guard.instructions()
        assert found["a fusion step: instructions"] > 10**7
    over, skipped = guard.exceeded(found, recorded)
    assert not over
    if recorded["conditions"] == guard.conditions():
        assert not skipped


def test_what_costs_more_is_named():
    found = {"dialogue: operators in the file": 400, "a turn: Python calls": 2}
    budgets = {"dialogue: operators in the file": 352, "a turn: Python calls": 1}
    other = {"conditions": {**guard.conditions(), "onnxruntime": "0.1"}, "budgets": budgets}
    over, skipped = guard.exceeded(found, other)
    assert over == ["dialogue: operators in the file: 400, budget 352"], "files do not depend on ONNX Runtime"
    assert "budgets are of 0.1" in skipped[0]
    assert len(guard.exceeded(found, {**other, "conditions": guard.conditions()})[0]) == 2
    assert guard.exceeded({}, other)[1] == [f"{name}: not counted here" for name in budgets]


def test_a_large_product_is_measured_in_both_arithmetics():
    for integers in (True, False):
        assert 1e8 < counted.multiplier(integers, 1, rows=64, inner=256)() < 1e14


class TestLoadGen:
    @pytest.fixture(scope="class")
    def loadgen(self):
        pytest.importorskip("mlperf_loadgen")
        from benchmarks import loadgen

        return loadgen

    @pytest.fixture(scope="class")
    def runtime(self, tiny):
        with HBAFRuntime(tiny.bundle, threads=1) as made:
            yield made

    def test_a_turn_is_judged_as_it_was_in_its_conversation(self, loadgen, runtime):
        queries = loadgen.recorded(runtime)
        assert [q.past.turn for q in queries] == list(range(8))
        share = loadgen.accuracy(loadgen.System(runtime, queries, 2, 3))
        assert share == 1.0
        wrong = [q._replace(label="no label") for q in queries]
        assert loadgen.accuracy(loadgen.System(runtime, wrong, 1, 1)) == 0.0

    def test_valid_runs_and_invalid_ones_say_so(self, loadgen, runtime):
        queries = loadgen.recorded(runtime)
        good = loadgen.measure(loadgen.System(runtime, queries, 1, 1), "SingleStream", 0.2)
        assert good.valid, good.reason
        assert good.figures["result_90.00_percentile_latency_ns"] > 0
        late = loadgen.measure(loadgen.System(runtime, queries, 1, 1), "Server", 0.2,
                           server_target_qps=1000, server_target_latency_ns=1000)  # fmt: skip
        assert not late.valid
        assert "Performance constraints satisfied : NO" in late.reason

    def test_a_turn_that_fails_ends_the_run_with_its_error(self, loadgen, runtime):
        queries = [q._replace(inputs={"text": 3}) for q in loadgen.recorded(runtime)]
        with pytest.raises(InputError, match="text is of type int"):
            loadgen.measure(loadgen.System(runtime, queries, 1, 1), "SingleStream", 0.05)

    def test_the_highest_valid_rate_is_found_by_halving(self, loadgen):
        seen = []

        def server(rate):
            seen.append(rate)
            return loadgen.Outcome(rate <= 37, "" if rate <= 37 else "too fast", {"rate": rate}, {})

        rate, found = loadgen.most_a_second(server, 40)
        assert 36 < rate <= 37
        assert found.valid
        assert len(seen) == loadgen.TRIES
        none, last = loadgen.most_a_second(lambda rate: loadgen.Outcome(False, "never", {}, {}), 40)
        assert none == 0
        assert last.reason == "never"
