"""Measure the runtime with MLPerf LoadGen.

    python -m benchmarks.loadgen --save                     # about four minutes

A query is one turn of the example conversation, on a fork of the conversation before that turn. LoadGen chooses the
queries, measures time and decides whether a run is valid. Runs are shorter than MLPerf's rules require (seconds instead
of ten minutes), so these are not MLPerf results. INVALID runs are listed with LoadGen's reason.

SingleStream   one turn after the other: 90th percentile of latency
MultiStream    eight turns of eight conversations at a time: 99th percentile of latency
Server         turns arrive at random (Poisson): highest rate at which 99 % of them meet the latency target
Offline        all turns are available at the start: turns per second
Accuracy       every turn once: share of labels that equal those of predicting the conversation in order
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from benchmarks.report import AsJson, ReportFolder, Save, Threads, measure_and_report, run
from hbaf_edge import BackendError, Conversation, HBAFRuntime
from hbaf_edge.bench import page
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import rounded, single_value
from hbaf_edge.cli import EXAMPLE, read_dialogue

STREAMS = 8  # turns of a MultiStream query
BATCH = 16  # turns of an Offline call
TARGET_MS = 100.0  # latency that 99 % of the turns of a Server run must meet
SEARCH_STEPS = 6  # Server runs that search for the highest rate
MIN_QUERIES = 662  # LoadGen needs that many for a 99th percentile


class Query(NamedTuple):
    """A turn.

    Attributes:
        inputs: arguments of `predict`, except the conversation.
        past: the conversation before the turn.
        label: the label that the same runtime predicts when the conversation is predicted in order.
    """

    inputs: dict[str, Any]
    past: Conversation
    label: str | None


class Outcome(NamedTuple):
    """LoadGen's result of a run.

    Attributes:
        is_valid: whether LoadGen accepts the run.
        reason: LoadGen's explanation of an invalid run.
        figures: values of LoadGen's detailed log, by key.
        labels: index of the label of each query; only in an accuracy run.
    """

    is_valid: bool
    reason: str
    figures: dict[str, Any]
    labels: dict[int, int]

    @property
    def text(self) -> str:
        """LoadGen's verdict, with its reason if the run is invalid."""
        return "VALID" if self.is_valid else f"INVALID: {self.reason}"


def example_queries(runtime: HBAFRuntime) -> list[Query]:
    """Return the turns of the example conversation."""
    conversation, queries = runtime.conversation(), []
    for turn in read_dialogue(EXAMPLE):
        inputs, past = {name: turn[name] for name in ("audio", "text", "speaker")}, conversation.fork()
        queries.append(Query(inputs, past, runtime.predict(conversation=conversation, **inputs).label))
    return queries


class System(NamedTuple):
    """The system under test: worker threads that predict batches of turns.

    Attributes:
        runtime: the runtime.
        queries: queries by LoadGen's index.
        workers: number of threads.
        batch: largest number of turns in a call.
    """

    runtime: HBAFRuntime
    queries: Sequence[Query]
    workers: int
    batch: int

    def predict(self, indices: Sequence[int]) -> list[str | None]:
        """Return the labels of a batch of queries, each on a fork of its conversation."""
        queries = [self.queries[index] for index in indices]
        turns: list[Any] = [{"conversation": query.past.fork(), **query.inputs} for query in queries]
        results = [self.runtime.predict(**turns[0])] if len(turns) == 1 else self.runtime.predict_batch(turns)
        return [p.label for p in results]

    def respond(self, ids: Sequence[int], labels: Sequence[str | None]) -> None:
        """Pass the index of each label to LoadGen; -1 stands for a failed turn."""
        import mlperf_loadgen as lg

        indices = np.array([self.runtime.labels.index(label) if label else -1 for label in labels], np.int32)
        address = indices.ctypes.data  # LoadGen copies 4 bytes per response from here
        lg.QuerySamplesComplete([lg.QuerySampleResponse(k, address + 4 * i, 4) for i, k in enumerate(ids)])


@contextmanager
def loadgen_handles(system: System) -> Iterator[tuple[Any, Any]]:
    """Yield LoadGen's handles of the system under test and of its sample library.

    Raises:
        Exception: the error of the first failed turn, when the run is over.
    """
    import mlperf_loadgen as lg

    errors: list[Exception] = []

    def compute(pairs: list[tuple[int, int]]) -> None:
        labels: list[str | None] = [None] * len(pairs)
        try:
            labels = system.predict([index for _, index in pairs])
        except Exception as error:  # LoadGen waits for every response, so the error is raised when the run is over
            errors.append(error)
        system.respond([query_id for query_id, _ in pairs], labels)

    def issue(samples: Any) -> None:
        pairs = [(s.id, s.index) for s in samples]
        for i in range(0, len(pairs), system.batch):
            pool.submit(compute, pairs[i : i + system.batch])

    count = len(system.queries)
    with ThreadPoolExecutor(system.workers) as pool:
        sut, samples = (
            lg.ConstructSUT(issue, lambda: None),
            lg.ConstructQSL(count, count, lambda _: None, lambda _: None),
        )
        try:
            yield sut, samples
        finally:
            lg.DestroyQSL(samples)
            lg.DestroySUT(sut)
    if errors:
        raise errors[0]


def measure(system: System, scenario: str, seconds: float, **fields: Any) -> Outcome:
    """Run LoadGen once.

    Args:
        system: system under test.
        scenario: LoadGen's scenario, such as "SingleStream".
        seconds: minimum duration.
        fields: fields of LoadGen's TestSettings.
    """
    import mlperf_loadgen as lg

    settings, out, log = lg.TestSettings(), lg.LogOutputSettings(), lg.LogSettings()
    settings.scenario, settings.mode = getattr(lg.TestScenario, scenario), lg.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = int(1e3 * seconds), 100
    for name, value in fields.items():
        assert hasattr(settings, name), name
        setattr(settings, name, value)
    with tempfile.TemporaryDirectory() as folder:
        out.outdir, out.copy_summary_to_stdout = folder, False
        log.log_output, log.enable_trace = out, False
        with loadgen_handles(system) as (sut, samples):
            lg.StartTestWithLogSettings(sut, samples, settings, log, "")
        return read_outcome(Path(folder))


def read_outcome(folder: Path) -> Outcome:
    """Read the logs of a run. The reason of an invalid run is copied from LoadGen's summary."""
    lines = (folder / "mlperf_log_detail.txt").read_text(errors="replace").splitlines()
    entries = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines if line.startswith(":::MLLOG")]
    figures = {entry["key"]: entry["value"] for entry in entries}
    summary = (folder / "mlperf_log_summary.txt").read_text(errors="replace")
    block = summary.partition("Result is :")[2].partition("\n\n")[0].splitlines()
    is_valid = figures.get("result_validity") == "VALID"
    reasons = [line.strip(" *") for line in block[1:] if not is_valid and "Yes" not in line]
    responses = json.loads((folder / "mlperf_log_accuracy.json").read_text() or "[]")
    labels = {r["qsl_idx"]: int(np.frombuffer(bytes.fromhex(r["data"]), np.int32)[0]) for r in responses}
    return Outcome(is_valid, "; ".join(filter(None, reasons)), figures, labels)


def accuracy(system: System) -> float:
    """Return the share of turns whose label in LoadGen's log equals that of predicting the conversation in order."""
    import mlperf_loadgen as lg

    queries, labels = system.queries, system.runtime.labels
    logged = measure(system, "Offline", 0, mode=lg.TestMode.AccuracyOnly).labels
    if set(logged) != set(range(len(queries))):
        raise BackendError(f"LoadGen logged {len(logged)} of {len(queries)} turns")
    return float(np.mean([labels[logged[i]] == q.label for i, q in enumerate(queries)]))


def highest_valid_rate(run_server: Callable[[float], Outcome], start: float) -> tuple[float, Outcome]:
    """Find the highest rate at which a Server run is valid, by bisection between 0 and 1.5 × `start`.

    Returns:
        The rate (0.0 if no run is valid), and the last valid run, or the last run if none is valid.
    """
    low, high, best, last = 0.0, 1.5 * start, None, None
    for _ in range(SEARCH_STEPS):
        rate = (low + high) / 2
        last = run_server(rate)
        if last.is_valid:
            low, best = rate, last
        else:
            high = rate
    assert last is not None
    return low, best or last


def section(threads: int, seconds: float) -> Section:
    """Run all scenarios; return a table of their figures and LoadGen's verdicts."""
    parallel, serial = HBAFRuntime(threads=threads), HBAFRuntime(threads=1)
    queries = example_queries(parallel)
    count, rows = len(queries), list[Sequence[Cell]]()
    measures: dict[str, Any] = {}

    def add(scenario: str, what: str, value: float, unit: str, outcome: Outcome) -> None:
        rows.append((scenario, what, rounded(value), unit, outcome.figures["result_query_count"], outcome.text))
        measures[f"{scenario}, {unit}"] = {**single_value(value), "better": "lower" if unit == "ms" else "higher"}

    single = measure(System(parallel, queries, 1, 1), "SingleStream", seconds)
    p90 = single.figures["result_90.00_percentile_latency_ns"] / 1e6
    add("SingleStream", "90th percentile", p90, "ms", single)
    multi = measure(System(parallel, queries, 1, STREAMS), "MultiStream", seconds,
                    multi_stream_samples_per_query=STREAMS, min_query_count=MIN_QUERIES)  # fmt: skip
    p99 = multi.figures["result_99.00_percentile_per_query_latency_ns"] / 1e6
    add("MultiStream", f"99th percentile of {STREAMS} turns", p99, "ms", multi)
    expected = 1e3 * threads / p90  # turns per second
    offline = measure(System(serial, queries, threads, BATCH), "Offline", seconds, offline_expected_qps=3 * expected)
    rate = offline.figures["result_samples_per_second"]
    add("Offline", f"{threads} workers, {BATCH} turns per call", rate, "turns/s", offline)

    def run_server(qps: float) -> Outcome:
        return measure(System(serial, queries, threads, 1), "Server", seconds, server_target_qps=qps,
                       server_target_latency_ns=int(TARGET_MS * 1e6), min_query_count=MIN_QUERIES)  # fmt: skip

    rate, server = highest_valid_rate(run_server, expected)
    add("Server", f"99 % within {TARGET_MS:g} ms", rate, "turns/s", server)
    share = 100 * accuracy(System(serial, queries, threads, BATCH))
    rows.append(("Accuracy", "labels as in order", rounded(share), "%", count, None))
    measures["Accuracy, %"] = {**single_value(share), "better": "higher"}
    text = (
        f"{count} turns of the example conversation, {threads} threads, at least {seconds:g} s per run. MLPerf's rules "
        "require longer runs, so these are not MLPerf results."
    )
    head = ("scenario", "what", "value", "unit", "queries", "LoadGen's verdict")
    return Section("loadgen", "MLPerf LoadGen", head, rows, text, measures, "")


def main(
    threads: Threads = 2,
    seconds: Annotated[float, typer.Option(help="minimum duration of a run")] = 10.0,
    report: ReportFolder = None,
    save: Save = False,
    as_json: AsJson = False,
) -> int:
    # LoadGen's threads do not survive a Python exception, so Ctrl-C must end the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if report is not None:
        page.check_folder(report)
    result = section(threads, seconds)
    new = Report("hbaf-edge under MLPerf LoadGen", {"threads": threads, "seconds": seconds})
    return measure_and_report("loadgen", new, [("LoadGen", lambda: result)], save, report, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
