"""MLPerf's own load generator drives the runtime: one user, a device with several sensors, a server, a batch.

    python -m benchmarks.loadgen --save                     # the example conversation, about four minutes
    python -m benchmarks.loadgen --turns 200 --save         # turns of the model's own test conversations (HBAF_DATA)

A query is one turn of a recorded conversation, on a fork of the conversation as it stood before that turn. LoadGen
draws turns, keeps time and judges; its logs lie in a folder per scenario. Runs are shorter than MLPerf's rules ask
(seconds in place of ten minutes), so these are LoadGen's figures, not an MLPerf result. INVALID runs stay in the table,
with LoadGen's reason.

SingleStream   one turn after the other: 90th percentile of its latency
MultiStream    eight turns of eight conversations at once: 99th percentile
Server         turns arrive at random (Poisson): the most a second with 99 % of them within the target
Offline        all at hand: turns a second
Accuracy       every turn once: the labels LoadGen logged, against predicting the conversations in order
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks.report import RESULTS
from hbaf_edge import Conversation, HBAFRuntime
from hbaf_edge.bench import page
from hbaf_edge.bench.command import finish
from hbaf_edge.bench.document import Cell, Report, Section, print_section
from hbaf_edge.bench.series import certain, rounded
from hbaf_edge.cli import EXAMPLE, read_dialogue
from hbaf_edge.given import TurnInput

TOGETHER = 8  # turns of a MultiStream query
BATCH = 16  # turns of an Offline call
TRIES = 6  # of the search for a Server's rate
NEEDED = 662  # queries before LoadGen trusts a 99th percentile
STOP = object()


class Query(NamedTuple):
    """A turn to be judged.

    Attributes:
        given: `predict`'s arguments but the conversation.
        past: the conversation before it.
        label: in order, by the same runtime.
    """

    given: dict[str, Any]
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


def recorded(runtime: HBAFRuntime, turns: int) -> list[Query]:
    """Turns of the example conversation, or so many of the bundle's test conversations."""
    if not turns:
        talks = [[{k: turn[k] for k in ("audio", "text", "speaker")} for turn in read_dialogue(EXAMPLE)]]
    else:
        from export.conversations import conversations

        found = conversations(runtime.manifest, "test", turns)
        talks = [[{"audio": u.audio, "text": u.text, "speaker": u.speaker} for u in d.turns] for d in found]
    queries = []
    for talk in talks:
        chat = runtime.conversation()
        for said in talk:
            past = chat.fork()
            queries.append(Query(said, past, runtime.predict(conversation=chat, **said).label))
    return queries


class System:
    """The system under test: workers take turns off a queue, a batch at a time.

    Args:
        runtime: that judges.
        queries: by LoadGen's index.
        workers: threads.
        batch: turns of a call at most.
    """

    def __init__(self, runtime: HBAFRuntime, queries: Sequence[Query], workers: int, batch: int) -> None:
        self._runtime, self._queries, self._batch = runtime, queries, batch
        self._failed: list[Exception] = []
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def issue(self, samples: Any) -> None:
        """LoadGen's call: several at once are cut into batches."""
        found = [(s.id, s.index) for s in samples]
        for i in range(0, len(found), self._batch):
            self._waiting.put(found[i : i + self._batch])

    def close(self) -> None:
        """Wait for the workers.

        Raises:
            Exception: the first turn that failed did so with it.
        """
        for _ in self._threads:
            self._waiting.put(STOP)
        for thread in self._threads:
            thread.join()
        if self._failed:
            raise self._failed[0]

    def _work(self) -> None:
        while (some := self._waiting.get()) is not STOP:
            labels: list[str | None] = [None] * len(some)
            try:
                turns = [self._turn(index) for _, index in some]
                found = [self._runtime.predict(**turns[0])] if len(turns) == 1 else self._runtime.predict_many(turns)
                labels = [p.label for p in found]
            except Exception as error:  # LoadGen waits for every answer; the error is raised when the run is over
                self._failed.append(error)
            self._answer([identity for identity, _ in some], labels)

    def _turn(self, index: int) -> TurnInput:
        query = self._queries[index]
        return TurnInput(conversation=query.past.fork(), **query.given)  # type: ignore[typeddict-item]

    def _answer(self, identities: Sequence[int], labels: Sequence[str | None]) -> None:
        import mlperf_loadgen as lg

        held = np.array([self._runtime.labels.index(label) if label else -1 for label in labels], np.int32)
        at = held.ctypes.data
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


def run(system: System, count: int, folder: Path, scenario: str, seconds: float, **fields: Any) -> Outcome:
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

    run(system, len(queries), folder, "Offline", 0, mode=lg.TestMode.AccuracyOnly)
    logged = json.loads((folder / "mlperf_log_accuracy.json").read_text())
    found = {e["qsl_idx"]: int(np.frombuffer(bytes.fromhex(e["data"]), np.int32)[0]) for e in logged}
    if set(found) != set(range(len(queries))):
        raise SystemExit(f"LoadGen logged {len(found)} of {len(queries)} turns")
    return float(np.mean([labels[found[i]] == q.label for i, q in enumerate(queries)]))


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


def section(threads: int, turns: int, seconds: float, target_ms: float, logs: Path,
            step: Callable[[], object] = lambda: None) -> Section:  # fmt: skip
    """All scenarios."""
    one, several = HBAFRuntime(threads=threads), HBAFRuntime(threads=1)
    queries = recorded(one, turns)
    count, rows = len(queries), list[Sequence[Cell]]()
    measures: dict[str, Any] = {}

    def note(name: str, what: str, value: float, unit: str, found: Outcome, asked: Any) -> None:
        rows.append(
            (name, what, rounded(value), unit, int(asked), "VALID" if found.valid else "INVALID: " + found.reason)
        )
        measures[f"{name}, {unit}"] = {**certain(value), "better": "lower" if unit == "ms" else "higher"}
        step()

    single = run(System(one, queries, 1, 1), count, logs / "SingleStream", "SingleStream", seconds)
    p90 = single.figures["result_90.00_percentile_latency_ns"] / 1e6
    note("SingleStream", "90th percentile", p90, "ms", single, single.figures["result_query_count"])
    multi = run(System(one, queries, 1, TOGETHER), count, logs / "MultiStream", "MultiStream", seconds,
                multi_stream_samples_per_query=TOGETHER, min_query_count=NEEDED)  # fmt: skip
    worst = multi.figures["result_99.00_percentile_per_query_latency_ns"] / 1e6
    note("MultiStream", f"99th percentile of {TOGETHER} turns", worst, "ms", multi, multi.figures["result_query_count"])
    offline = run(System(several, queries, threads, BATCH), count, logs / "Offline", "Offline", seconds,
                  offline_expected_qps=3e3 * threads / p90)  # fmt: skip
    rate = offline.figures["result_samples_per_second"]
    note(
        "Offline",
        f"{threads} workers, {BATCH} turns a call",
        rate,
        "turns/s",
        offline,
        offline.figures["generated_query_count"],
    )

    def server(qps: float) -> Outcome:
        return run(System(several, queries, threads, 1), count, logs / f"Server-{qps:.1f}", "Server", seconds,
                   server_target_qps=qps, server_target_latency_ns=int(target_ms * 1e6),
                   min_query_count=NEEDED)  # fmt: skip

    most, found = most_a_second(server, 1e3 * threads / p90)
    note("Server", f"99 % within {target_ms:g} ms", most, "turns/s", found, found.figures["result_query_count"])
    share = accuracy(System(several, queries, threads, BATCH), queries, one.labels, logs / "Accuracy")
    rows.append(("Accuracy", "labels as in order", rounded(100 * share), "%", count, None))
    measures["Accuracy, %"] = {**certain(100 * share), "better": "higher"}
    text = (
        f"{count} turns of recorded conversations, {threads} threads, at least {seconds:g} s a run: shorter than "
        "MLPerf's rules ask, so these are no MLPerf results."
    )
    return Section("loadgen", "MLPerf LoadGen", ("scenario", "what", "value", "unit", "queries", "LoadGen says"), rows,
                   text, measures, "")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=0, help="of the test conversations; 0 takes the example")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--target-ms", type=float, default=100)
    parser.add_argument("--report", type=Path, help="folder for the report and LoadGen's logs")
    parser.add_argument("--save", action="store_true", help="to benchmarks/results/loadgen")
    given = parser.parse_args()
    # LoadGen's threads do not survive an exception in between: an interruption ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    folder = given.report or (RESULTS / "loadgen" if given.save else None)
    if folder is not None:
        page.check(folder)
    made = Report("hbaf-edge under MLPerf LoadGen", {"threads": given.threads, "seconds": given.seconds})
    with tempfile.TemporaryDirectory() as spare:
        logs = (folder or Path(spare)) / "logs"
        shutil.rmtree(logs, ignore_errors=True)  # of an earlier run
        made.sections.append(section(given.threads, given.turns, given.seconds, given.target_ms, logs))
    print_section(Console(), made.sections[0])
    finish(made, folder, Console())


if __name__ == "__main__":
    main()
