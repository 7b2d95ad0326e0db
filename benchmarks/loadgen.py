"""MLPerf's own load generator drives the runtime: one user, a device with several sensors, a server, a batch.

    python -m benchmarks.loadgen --save                     # about four minutes

A query is one turn of the example conversation, on a fork of the conversation as it stood before that turn. LoadGen
draws turns, keeps time and judges. Runs are shorter than MLPerf's rules ask (seconds in place of ten minutes), so these
are LoadGen's figures, not an MLPerf result. INVALID runs stay in the table, with LoadGen's reason.

SingleStream   one turn after the other: 90th percentile of its latency
MultiStream    eight turns of eight conversations at once: 99th percentile
Server         turns arrive at random (Poisson): the most a second with 99 % of them within the target
Offline        all at hand: turns a second
Accuracy       every turn once: the labels LoadGen logged, against predicting the conversations in order
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

from benchmarks.report import ReportFolder, Save, Threads, conclude, run
from hbaf_edge import BackendError, Conversation, HBAFRuntime
from hbaf_edge.bench import page
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import rounded, single
from hbaf_edge.cli import EXAMPLE, read_dialogue

TOGETHER = 8  # turns of a MultiStream query
BATCH = 16  # turns of an Offline call
TARGET_MS = 100.0  # latency that 99 % of a Server's turns have to keep
TRIES = 6  # of the search for a Server's rate
NEEDED = 662  # queries before LoadGen trusts a 99th percentile


class Query(NamedTuple):
    """A turn to be predicted.

    Attributes:
        inputs: `predict`'s arguments but the conversation.
        past: the conversation before it.
        label: in order, by the same runtime.
    """

    inputs: dict[str, Any]
    past: Conversation
    label: str | None


class Outcome(NamedTuple):
    """What LoadGen says of a run.

    Attributes:
        valid: whether it counts.
        reason: LoadGen's lines about it.
        figures: of its detailed log, by key.
        answers: an accuracy run's answers, by query.
    """

    valid: bool
    reason: str
    figures: dict[str, Any]
    answers: dict[int, int]

    @property
    def text(self) -> str:
        """LoadGen's verdict."""
        return "VALID" if self.valid else f"INVALID: {self.reason}"


def recorded(runtime: HBAFRuntime) -> list[Query]:
    """Turns of the example conversation."""
    chat, queries = runtime.conversation(), []
    for turn in read_dialogue(EXAMPLE):
        inputs, past = {name: turn[name] for name in ("audio", "text", "speaker")}, chat.fork()
        queries.append(Query(inputs, past, runtime.predict(conversation=chat, **inputs).label))
    return queries


class System(NamedTuple):
    """The system under test: workers, each of which takes a batch of turns at a time.

    Attributes:
        runtime: that predicts.
        queries: by LoadGen's index.
        workers: threads.
        batch: turns of a call at most.
    """

    runtime: HBAFRuntime
    queries: Sequence[Query]
    workers: int
    batch: int

    def predict(self, indices: Sequence[int]) -> list[str | None]:
        """Labels of a batch of queries, each on a fork of its conversation."""
        queries = [self.queries[index] for index in indices]
        turns: list[Any] = [{"conversation": query.past.fork(), **query.inputs} for query in queries]
        results = [self.runtime.predict(**turns[0])] if len(turns) == 1 else self.runtime.predict_batch(turns)
        return [p.label for p in results]

    def answer(self, identities: Sequence[int], labels: Sequence[str | None]) -> None:
        """Give LoadGen the index of each label, -1 where there is none."""
        import mlperf_loadgen as lg

        indices = np.array([self.runtime.labels.index(label) if label else -1 for label in labels], np.int32)
        at = indices.ctypes.data
        lg.QuerySamplesComplete([lg.QuerySampleResponse(k, at + 4 * i, 4) for i, k in enumerate(identities)])


@contextmanager
def under_test(system: System) -> Iterator[tuple[Any, Any]]:
    """LoadGen's handles of a system and its samples.

    Raises:
        Exception: of the first turn that failed, once the run is over.
    """
    import mlperf_loadgen as lg

    errors: list[Exception] = []

    def compute(pairs: list[tuple[int, int]]) -> None:
        labels: list[str | None] = [None] * len(pairs)
        try:
            labels = system.predict([index for _, index in pairs])
        except Exception as error:  # LoadGen waits for every answer; the error is raised when the run is over
            errors.append(error)
        system.answer([identity for identity, _ in pairs], labels)

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
    """One run of LoadGen.

    Args:
        system: under test.
        scenario: of LoadGen, such as "SingleStream".
        seconds: at least so long.
        fields: of LoadGen's TestSettings.
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
        with under_test(system) as (sut, samples):
            lg.StartTestWithLogSettings(sut, samples, settings, log, "")
        return outcome(Path(folder))


def outcome(folder: Path) -> Outcome:
    """Of the logs that a run left; what LoadGen found wrong is passed on word by word."""
    lines = (folder / "mlperf_log_detail.txt").read_text(errors="replace").splitlines()
    logged = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines if line.startswith(":::MLLOG")]
    figures = {entry["key"]: entry["value"] for entry in logged}
    summary = (folder / "mlperf_log_summary.txt").read_text(errors="replace")
    block = summary.partition("Result is :")[2].partition("\n\n")[0].splitlines()
    valid = figures.get("result_validity") == "VALID"
    bad = [line.strip(" *") for line in block[1:] if valid is False and "Yes" not in line]
    entries = json.loads((folder / "mlperf_log_accuracy.json").read_text() or "[]")
    answers = {e["qsl_idx"]: int(np.frombuffer(bytes.fromhex(e["data"]), np.int32)[0]) for e in entries}
    return Outcome(valid, "; ".join(filter(None, bad)), figures, answers)


def accuracy(system: System) -> float:
    """Share of turns whose label, as LoadGen logged it, is the one of the conversation in order."""
    import mlperf_loadgen as lg

    queries, labels = system.queries, system.runtime.labels
    logged = measure(system, "Offline", 0, mode=lg.TestMode.AccuracyOnly).answers
    if set(logged) != set(range(len(queries))):
        raise BackendError(f"LoadGen logged {len(logged)} of {len(queries)} turns")
    return float(np.mean([labels[logged[i]] == q.label for i, q in enumerate(queries)]))


def most_a_second(server: Callable[[float], Outcome], start: float) -> tuple[float, Outcome]:
    """The highest rate at which a Server run is VALID, by halving; the last valid run, or the last if none was."""
    low, high, best, last = 0.0, 1.5 * start, None, None
    for _ in range(TRIES):
        rate = (low + high) / 2
        last = server(rate)
        if last.valid:
            low, best = rate, last
        else:
            high = rate
    assert last is not None
    return low, best or last


def section(threads: int, seconds: float) -> Section:
    """All scenarios: a figure of each, and LoadGen's verdict."""
    one, several = HBAFRuntime(threads=threads), HBAFRuntime(threads=1)
    queries = recorded(one)
    count, rows = len(queries), list[Sequence[Cell]]()
    measures: dict[str, Any] = {}

    def note(scenario: str, what: str, value: float, unit: str, outcome_: Outcome) -> None:
        asked = outcome_.figures["result_query_count"]
        rows.append((scenario, what, rounded(value), unit, asked, outcome_.text))
        measures[f"{scenario}, {unit}"] = {**single(value), "better": "lower" if unit == "ms" else "higher"}

    alone = measure(System(one, queries, 1, 1), "SingleStream", seconds)
    p90 = alone.figures["result_90.00_percentile_latency_ns"] / 1e6
    note("SingleStream", "90th percentile", p90, "ms", alone)
    multi = measure(System(one, queries, 1, TOGETHER), "MultiStream", seconds,
                    multi_stream_samples_per_query=TOGETHER, min_query_count=NEEDED)  # fmt: skip
    worst = multi.figures["result_99.00_percentile_per_query_latency_ns"] / 1e6
    note("MultiStream", f"99th percentile of {TOGETHER} turns", worst, "ms", multi)
    expected = 1e3 * threads / p90  # turns a second
    offline = measure(System(several, queries, threads, BATCH), "Offline", seconds, offline_expected_qps=3 * expected)
    rate = offline.figures["result_samples_per_second"]
    note("Offline", f"{threads} workers, {BATCH} turns a call", rate, "turns/s", offline)

    def server(qps: float) -> Outcome:
        return measure(System(several, queries, threads, 1), "Server", seconds, server_target_qps=qps,
                       server_target_latency_ns=int(TARGET_MS * 1e6), min_query_count=NEEDED)  # fmt: skip

    most, outcome_ = most_a_second(server, expected)
    note("Server", f"99 % within {TARGET_MS:g} ms", most, "turns/s", outcome_)
    share = 100 * accuracy(System(several, queries, threads, BATCH))
    rows.append(("Accuracy", "labels as in order", rounded(share), "%", count, None))
    measures["Accuracy, %"] = {**single(share), "better": "higher"}
    text = (
        f"{count} turns of the example conversation, {threads} threads, at least {seconds:g} s a run: shorter than "
        "MLPerf's rules ask, so these are no MLPerf results."
    )
    head = ("scenario", "what", "value", "unit", "queries", "LoadGen says")
    return Section("loadgen", "MLPerf LoadGen", head, rows, text, measures, "")


def main(
    threads: Threads = 2,
    seconds: Annotated[float, typer.Option(help="of a run at least")] = 10.0,
    report: ReportFolder = None,
    save: Save = False,
) -> int:
    # LoadGen's threads do not survive an exception in between: an interruption ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if report is not None:
        page.check(report)
    measured = section(threads, seconds)
    new = Report("hbaf-edge under MLPerf LoadGen", {"threads": threads, "seconds": seconds})
    return conclude("loadgen", new, [("LoadGen", lambda: measured)], save, report)


if __name__ == "__main__":
    run(main, __doc__)
