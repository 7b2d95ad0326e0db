"""MLPerf's own load generator drives the runtime: one user, a device with several sensors, a server, a batch.

    python -m benchmarks.loadgen --save                     # the example conversation, about four minutes
    python -m benchmarks.loadgen --turns 200 --save         # turns of the model's own test conversations (HBAF_DATA)

A query is one turn of a recorded conversation, on a fork of the conversation as it stood before that turn. LoadGen
draws turns, keeps time and judges; the figures of each run are reported, its logs are written with `--logs DIR` only.
Runs are shorter than MLPerf's rules ask (seconds in place of ten minutes), so these are LoadGen's figures, not an
MLPerf result. INVALID runs stay in the table, with LoadGen's reason.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
TRIES = 6  # of the search for a Server's rate
NEEDED = 662  # queries before LoadGen trusts a 99th percentile
PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")  # of a query's latency, as LoadGen logs them
RATES = ("result_qps_with_loadgen_overhead", "result_completed_samples_per_sec", "result_samples_per_second")


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
    """

    valid: bool
    reason: str
    figures: dict[str, Any]

    @property
    def text(self) -> str:
        """LoadGen's verdict."""
        return "VALID" if self.valid else f"INVALID: {self.reason}"


def recorded(runtime: HBAFRuntime, turns: int) -> list[Query]:
    """Turns of the example conversation, or so many of the bundle's test conversations."""
    if not turns:
        talks = [[{k: turn[k] for k in ("audio", "text", "speaker")} for turn in read_dialogue(EXAMPLE)]]
    else:
        from export.conversations import conversations

        dialogues = conversations(runtime.manifest, "test", turns)
        talks = [[{"audio": u.audio, "text": u.text, "speaker": u.speaker} for u in d.turns] for d in dialogues]
    queries = []
    for talk in talks:
        chat = runtime.conversation()
        for inputs in talk:
            past = chat.fork()
            queries.append(Query(inputs, past, runtime.predict(conversation=chat, **inputs).label))
    return queries


class System:
    """The system under test: a pool of workers, each of which takes a batch of turns at a time.

    Args:
        runtime: that predicts.
        queries: by LoadGen's index.
        workers: threads.
        batch: turns of a call at most.
    """

    def __init__(self, runtime: HBAFRuntime, queries: Sequence[Query], workers: int, batch: int) -> None:
        self._runtime, self._queries, self._batch = runtime, queries, batch
        self._errors: list[Exception] = []
        self._pool = ThreadPoolExecutor(workers)

    def issue(self, samples: Any) -> None:
        """LoadGen's call: several at once are cut into batches."""
        pairs = [(s.id, s.index) for s in samples]
        for i in range(0, len(pairs), self._batch):
            self._pool.submit(self._compute, pairs[i : i + self._batch])

    def close(self) -> None:
        """Wait for the workers.

        Raises:
            Exception: of the first turn that failed.
        """
        self._pool.shutdown()
        if self._errors:
            raise self._errors[0]

    def _compute(self, pairs: list[tuple[int, int]]) -> None:
        labels: list[str | None] = [None] * len(pairs)
        try:
            turns: list[Any] = [self._turn(index) for _, index in pairs]
            one = len(turns) == 1
            results = [self._runtime.predict(**turns[0])] if one else self._runtime.predict_batch(turns)
            labels = [p.label for p in results]
        except Exception as error:  # LoadGen waits for every answer; the error is raised when the run is over
            self._errors.append(error)
        self._answer([identity for identity, _ in pairs], labels)

    def _turn(self, index: int) -> dict[str, Any]:
        query = self._queries[index]
        return {"conversation": query.past.fork(), **query.inputs}

    def _answer(self, identities: Sequence[int], labels: Sequence[str | None]) -> None:
        import mlperf_loadgen as lg

        indices = np.array([self._runtime.labels.index(label) if label else -1 for label in labels], np.int32)
        at = indices.ctypes.data
        lg.QuerySamplesComplete([lg.QuerySampleResponse(k, at + 4 * i, 4) for i, k in enumerate(identities)])


@contextmanager
def under_test(system: System, count: int) -> Iterator[tuple[Any, Any]]:
    """LoadGen's handles of a system and its samples."""
    import mlperf_loadgen as lg

    sut = lg.ConstructSUT(system.issue, lambda: None)
    samples = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)
    try:
        yield sut, samples
    finally:
        lg.DestroyQSL(samples)
        lg.DestroySUT(sut)
        system.close()


def measure(system: System, count: int, folder: Path, scenario: str, seconds: float, **fields: Any) -> Outcome:
    """One run of LoadGen, its logs in a folder.

    Args:
        system: under test; closed afterwards.
        count: samples.
        folder: for logs.
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
    folder.mkdir(parents=True, exist_ok=True)
    out.outdir, out.copy_summary_to_stdout = str(folder), False
    log.log_output, log.enable_trace = out, False
    with under_test(system, count) as (sut, samples):
        lg.StartTestWithLogSettings(sut, samples, settings, log, "")
    return outcome(folder)


def outcome(folder: Path) -> Outcome:
    """Of the logs that a run left; what LoadGen found wrong is passed on word by word."""
    lines = (folder / "mlperf_log_detail.txt").read_text(errors="replace").splitlines()
    logged = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines if line.startswith(":::MLLOG")]
    figures = {entry["key"]: entry["value"] for entry in logged}
    summary = (folder / "mlperf_log_summary.txt").read_text(errors="replace")
    block = summary.partition("Result is :")[2].partition("\n\n")[0].splitlines()
    valid = figures.get("result_validity") == "VALID"
    bad = [line.strip(" *") for line in block[1:] if valid is False and "Yes" not in line]
    return Outcome(valid, "; ".join(filter(None, bad)), figures)


def accuracy(system: System, queries: Sequence[Query], labels: Sequence[str], folder: Path) -> float:
    """Share of turns whose label, as LoadGen logged it, is the one of the conversation in order."""
    import mlperf_loadgen as lg

    measure(system, len(queries), folder, "Offline", 0, mode=lg.TestMode.AccuracyOnly)
    entries = json.loads((folder / "mlperf_log_accuracy.json").read_text())
    logged = {e["qsl_idx"]: int(np.frombuffer(bytes.fromhex(e["data"]), np.int32)[0]) for e in entries}
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


def runs_section(outcomes: Mapping[str, Outcome]) -> Section:
    """What LoadGen logged of every run: its verdict, how many queries, and their latency."""
    rows: list[list[Cell]] = []
    for name, outcome_ in outcomes.items():
        figures = outcome_.figures
        keys = ("mean_latency", *(f"{p}_percentile_latency" for p in PERCENTILES), "max_latency")
        latency = [rounded(figures[f"result_{key}_ns"] / 1e6) for key in keys]
        rate = next((rounded(figures[key]) for key in RATES if key in figures), None)
        rows.append([name, outcome_.text, figures["result_query_count"], rate, *latency])
    head = ("run", "LoadGen says", "queries", "turns/s", "mean, ms", *(f"p{float(p):g}" for p in PERCENTILES), "max")
    return Section("loadgen_runs", "MLPerf LoadGen, every run", head, rows,
                   "Latency is of a query; of Offline, whose one query holds all turns, of a turn.")  # fmt: skip


def sections(threads: int, turns: int, seconds: float, target_ms: float, logs: Path) -> list[Section]:
    """All scenarios: their figures, and every single run."""
    one, several = HBAFRuntime(threads=threads), HBAFRuntime(threads=1)
    queries = recorded(one, turns)
    count, rows = len(queries), list[Sequence[Cell]]()
    outcomes: dict[str, Outcome] = {}
    measures: dict[str, Any] = {}

    def note(scenario: str, what: str, value: float, unit: str, outcome_: Outcome) -> None:
        asked = outcome_.figures["result_query_count"]
        rows.append((scenario, what, rounded(value), unit, asked, outcome_.text))
        measures[f"{scenario}, {unit}"] = {**single(value), "better": "lower" if unit == "ms" else "higher"}

    def go(name: str, system: System, scenario: str, **fields: Any) -> Outcome:
        outcomes[name] = measure(system, count, logs / name, scenario, seconds, **fields)
        return outcomes[name]

    alone = go("SingleStream", System(one, queries, 1, 1), "SingleStream")
    p90 = alone.figures["result_90.00_percentile_latency_ns"] / 1e6
    note("SingleStream", "90th percentile", p90, "ms", alone)
    multi = go("MultiStream", System(one, queries, 1, TOGETHER), "MultiStream",
               multi_stream_samples_per_query=TOGETHER, min_query_count=NEEDED)  # fmt: skip
    worst = multi.figures["result_99.00_percentile_per_query_latency_ns"] / 1e6
    note("MultiStream", f"99th percentile of {TOGETHER} turns", worst, "ms", multi)
    expected = 1e3 * threads / p90  # turns a second
    offline = go("Offline", System(several, queries, threads, BATCH), "Offline", offline_expected_qps=3 * expected)
    rate = offline.figures["result_samples_per_second"]
    note("Offline", f"{threads} workers, {BATCH} turns a call", rate, "turns/s", offline)

    def server(qps: float) -> Outcome:
        return go(f"Server-{qps:.1f}", System(several, queries, threads, 1), "Server", server_target_qps=qps,
                  server_target_latency_ns=int(target_ms * 1e6), min_query_count=NEEDED)  # fmt: skip

    most, outcome_ = most_a_second(server, expected)
    note("Server", f"99 % within {target_ms:g} ms", most, "turns/s", outcome_)
    share = 100 * accuracy(System(several, queries, threads, BATCH), queries, one.labels, logs / "Accuracy")
    rows.append(("Accuracy", "labels as in order", rounded(share), "%", count, None))
    measures["Accuracy, %"] = {**single(share), "better": "higher"}
    text = (
        f"{count} turns of recorded conversations, {threads} threads, at least {seconds:g} s a run: shorter than "
        "MLPerf's rules ask, so these are no MLPerf results."
    )
    head = ("scenario", "what", "value", "unit", "queries", "LoadGen says")
    return [Section("loadgen", "MLPerf LoadGen", head, rows, text, measures, ""), runs_section(outcomes)]


def main(
    threads: Threads = 2,
    turns: Annotated[int, typer.Option(help="of the test conversations; 0 takes the example")] = 0,
    seconds: Annotated[float, typer.Option(help="of a run at least")] = 10.0,
    target_ms: Annotated[float, typer.Option(help="latency that a Server's turns have to keep")] = 100.0,
    logs: Annotated[
        Path | None, typer.Option(help="folder for LoadGen's own logs; they are not kept otherwise")
    ] = None,
    report: ReportFolder = None,
    save: Save = False,
) -> int:
    # LoadGen's threads do not survive an exception in between: an interruption ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if report is not None:
        page.check(report)
    with tempfile.TemporaryDirectory() as spare:
        measured = sections(threads, turns, seconds, target_ms, logs or Path(spare))
    new = Report("hbaf-edge under MLPerf LoadGen", {"threads": threads, "seconds": seconds})
    return conclude("loadgen", new, [("LoadGen", lambda: measured)], save, report)


if __name__ == "__main__":
    run(main, __doc__)
