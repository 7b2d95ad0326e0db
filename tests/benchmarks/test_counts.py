"""Counted operations match a calculation by hand, budgets are checked, and LoadGen's results are read correctly."""

import json
import shutil

import pytest

from benchmarks import guard, operation_counts
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError


@pytest.fixture(scope="module")
def counts():
    return operation_counts.count(load_bundle(None))


def test_operations_of_the_encoders_match_a_calculation_by_hand(counts):
    """Whisper tiny.en on 150 frames: each layer has four INT8 projections and an INT8 feed-forward of 4 x width."""
    d, frames, layers, heads = 384, 150, 4, 6
    assert counts["audio"].integer == layers * 2 * frames * (4 * d * d + 8 * d * d)
    attention = layers * 2 * 2 * heads * frames * frames * (d // heads)
    stem = 2 * 300 * d * 80 * 3 + 2 * 150 * d * d * 3
    assert counts["audio"].floating == pytest.approx(attention + stem, rel=0.01)
    assert counts["text"].integer == pytest.approx(6 * 2 * 14 * 12 * d * d, rel=0.01)


@pytest.mark.slow
def test_no_budget_is_exceeded_on_this_machine(counts):
    recorded = json.loads(guard.BUDGETS.read_text())
    current = {**guard.graph_counts(), **guard.python_counts()}
    if shutil.which("valgrind"):
        current |= guard.instructions()
        assert current["a fusion step: instructions"] > 10**7
    exceeded, skipped = guard.check_budgets(current, recorded)
    assert not exceeded
    if recorded["conditions"] == guard.conditions():
        assert not skipped


def test_exceeded_budgets_are_listed():
    current = {"dialogue: operators in the file": 400, "a turn: Python calls": 2}
    budgets = {"dialogue: operators in the file": 352, "a turn: Python calls": 1}
    recorded = {"conditions": {**guard.conditions(), "onnxruntime": "0.1"}, "budgets": budgets}
    exceeded, skipped = guard.check_budgets(current, recorded)
    assert exceeded == ["dialogue: operators in the file: 400, budget 352"], "files do not depend on ONNX Runtime"
    assert "budgets are of 0.1" in skipped[0]
    assert len(guard.check_budgets(current, {**recorded, "conditions": guard.conditions()})[0]) == 2
    assert guard.check_budgets({}, recorded)[1] == [f"{name}: not counted here" for name in budgets]


@pytest.mark.parametrize("is_int8", [True, False])
def test_the_rate_of_a_matrix_product_is_plausible(is_int8):
    assert 1e8 < operation_counts.matmul_rate(is_int8, 1, rows=64, inner=256)() < 1e14


class TestLoadGen:
    @pytest.fixture(scope="class")
    def loadgen(self):
        pytest.importorskip("mlperf_loadgen")
        from benchmarks import loadgen

        return loadgen

    @pytest.fixture(scope="class")
    def runtime(self, tiny):
        with HBAFRuntime(tiny.bundle, threads=1) as runtime:
            yield runtime

    def test_a_turn_gets_the_label_that_it_has_in_its_conversation(self, loadgen, runtime):
        queries = loadgen.example_queries(runtime)
        assert [query.past.turn for query in queries] == list(range(8))
        share = loadgen.accuracy(loadgen.System(runtime, queries, 2, 3))
        assert share == 1.0
        wrong = [query._replace(label="no label") for query in queries]
        assert loadgen.accuracy(loadgen.System(runtime, wrong, 1, 1)) == 0.0

    def test_an_invalid_run_has_a_reason(self, loadgen, runtime):
        queries = loadgen.example_queries(runtime)
        good = loadgen.measure(loadgen.System(runtime, queries, 1, 1), "SingleStream", 0.2)
        assert good.is_valid, good.reason
        assert good.figures["result_90.00_percentile_latency_ns"] > 0
        late = loadgen.measure(loadgen.System(runtime, queries, 1, 1), "Server", 0.2,
                               server_target_qps=1000, server_target_latency_ns=1000)  # fmt: skip
        assert not late.is_valid
        assert "Performance constraints satisfied : NO" in late.reason

    def test_the_error_of_a_failed_turn_is_raised_after_the_run(self, loadgen, runtime):
        queries = [query._replace(inputs={"text": 3}) for query in loadgen.example_queries(runtime)]
        with pytest.raises(InputError, match="text is of type int"):
            loadgen.measure(loadgen.System(runtime, queries, 1, 1), "SingleStream", 0.05)

    def test_bisection_returns_the_highest_valid_rate(self, loadgen):
        rates = []

        def run_server(rate):
            rates.append(rate)
            return loadgen.Outcome(rate <= 37, "" if rate <= 37 else "too fast", {"rate": rate}, {})

        rate, best = loadgen.highest_valid_rate(run_server, 40)
        assert 36 < rate <= 37
        assert best.is_valid
        assert len(rates) == loadgen.SEARCH_STEPS
        rate, last = loadgen.highest_valid_rate(lambda rate: loadgen.Outcome(False, "too slow", {}, {}), 40)
        assert rate == 0
        assert last.reason == "too slow"
