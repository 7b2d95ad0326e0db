"""Check that nothing hangs or aborts when calls are interrupted, or when a program exits in the middle of a turn.

    python -m benchmarks.interrupts                        # a minute
    python -m benchmarks.interrupts --calls 10000 --exits 200 --save

Interrupted calls: a signal interrupts a call at a random moment, like a timeout or Ctrl-C. Regularly another thread,
which no signal reaches, predicts a turn of the same conversation and must get its result.
Exits: a program exits while a daemon thread predicts, while audio is fed, or while submitted turns wait. It must end
with its own exit code and an empty standard error, and every submitted turn must get its result.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from benchmarks.report import AsJson, Save, measure_and_report, run, verdict
from hbaf_edge import Conversation, HBAFRuntime
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import single_value
from hbaf_edge.bench.turns import RATE, speech

CHECK_EVERY = 250  # calls
MAX_SECONDS = 30.0  # a call that takes longer counts as hanging
KINDS = ("text", "audio and text", "a live turn", "a batch")
SUBMITTED = 8  # turns that a program of the last kind submits
TEXT = "Well, hello there."
EXITS = {
    "a daemon thread predicts": """
def work():
    while True: runtime.predict(samples, sample_rate=16000, text='hello')
threading.Thread(target=work, daemon=True).start(); time.sleep(delay); sys.exit(3)""",
    "a live turn is fed by a daemon thread": """
def work():
    turn = runtime.begin()
    while True: turn.feed(samples[:4800], 48000)
threading.Thread(target=work, daemon=True).start(); time.sleep(delay); sys.exit(3)""",
    "turns are submitted": f"""
for n in range({SUBMITTED}):
    future = runtime.submit(samples, sample_rate=16000, text='hello')
    future.add_done_callback(lambda future: print(future.result().label))
sys.exit(3)""",
}
PROGRAM = """
import sys, threading, time, numpy as np, hbaf_edge
delay = float(sys.argv[1]); runtime = hbaf_edge.HBAFRuntime(max_batch_size=int(sys.argv[2]))
samples = np.random.default_rng(0).normal(0, .1, 16000).astype(np.float32)
"""


class Interrupted(BaseException):
    """A timeout by a signal; like KeyboardInterrupt it is no subclass of Exception."""


def _raise_interrupted(number: int, frame: object) -> None:
    raise Interrupted


def is_hanging(call: Callable[[], object]) -> bool:
    """Return whether a call on another thread, which no signal reaches, takes longer than `MAX_SECONDS`."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    return thread.is_alive()


def interrupt(call: Callable[[], object], max_delay: float, rng: random.Random) -> bool:
    """Run a call, send a signal after a random delay of at most `max_delay` seconds, and return whether it ended it."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, max_delay))
            call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        return True
    return False


def prepare_call(kind: str, runtime: HBAFRuntime, conversation: Conversation) -> Callable[[], object]:
    """Return a function that predicts one turn, or one batch, of that kind."""
    audio: dict[str, Any] = {"audio": speech(1.0), "sample_rate": RATE}

    def predict_live() -> None:
        turn = runtime.begin(conversation=conversation)
        turn.feed(audio["audio"], RATE)
        turn.finish(TEXT)

    calls: dict[str, Callable[[], object]] = {
        "text": partial(runtime.predict, text=TEXT, conversation=conversation),
        "audio and text": partial(runtime.predict, **audio, text=TEXT, conversation=conversation),
        "a live turn": predict_live,
        "a batch": lambda: runtime.predict_batch([{"text": TEXT, "conversation": conversation}, {"text": TEXT}]),
    }
    return calls[kind]


def interrupted_calls(count: int, seed: int) -> Section:
    """Interrupt `count` calls, equally many of each kind."""
    previous, rng = signal.signal(signal.SIGALRM, _raise_interrupted), random.Random(seed)
    rows: list[list[Cell]] = []
    try:
        for kind in KINDS:
            with HBAFRuntime() as runtime:
                rows.append([kind, *_interrupt_kind(runtime, kind, count // len(KINDS), rng)])
    finally:
        signal.signal(signal.SIGALRM, previous)
    hangs = sum(int(row[3] or 0) for row in rows)
    rows.append(["hangs", None, None, verdict(hangs, "≤", 0)])
    head = ("call", "calls", "interrupted", "hanging")
    return Section("interrupted", "Calls interrupted by a signal", head, rows, "", {"hangs": single_value(hangs)}, "")


def _interrupt_kind(runtime: HBAFRuntime, kind: str, count: int, rng: random.Random) -> tuple[int, int, int]:
    """Interrupt `count` calls of one kind; return all, interrupted and hanging calls. The first hang ends it."""
    conversation = runtime.conversation()
    call = prepare_call(kind, runtime, conversation)
    call()  # warm-up
    start = time.perf_counter()
    call()
    max_delay, calls, interrupted = 1.2 * (time.perf_counter() - start), 0, 0
    while interrupted < count:
        calls += 1
        interrupted += interrupt(call, max_delay, rng)
        should_check = calls % CHECK_EVERY == 0 or interrupted == count
        if should_check and is_hanging(lambda: runtime.predict(text=TEXT, conversation=conversation)):
            return calls, interrupted, 1
    return calls, interrupted, 0


def exits(count: int, seed: int) -> Section:
    """Run programs that exit in the middle of a turn."""
    rng, rows, aborts, lost = random.Random(seed), list[list[Cell]](), 0, 0
    for kind, program in EXITS.items():
        runs, failures = -(-count // len(EXITS)), 0
        for n in range(runs):
            argv = [sys.executable, "-c", PROGRAM + program, f"{rng.uniform(0, 0.3):.4f}", str(1 + 3 * (n % 2))]
            process = subprocess.run(argv, capture_output=True, text=True, timeout=120)
            failures += process.returncode != 3 or bool(process.stderr.strip())
            if kind == "turns are submitted":
                lost += SUBMITTED - len(process.stdout.splitlines())
        aborts += failures
        rows.append([kind, runs, failures])
    rows += [["aborts", None, verdict(aborts, "≤", 0)], ["results lost", None, verdict(lost, "≤", 0)]]
    return Section("exits", "Programs that exit during a turn",
                   ("the program exits while", "runs", "other exit codes or messages"), rows, "",
                   {"aborts": single_value(aborts), "results lost": single_value(lost)}, "")  # fmt: skip


def main(
    calls: Annotated[int, typer.Option(min=4, help="calls to interrupt")] = 1000,
    programs: Annotated[int, typer.Option("--exits", min=3, help="programs that exit during a turn")] = 12,
    seed: Annotated[int, typer.Option(help="seed of the random delays")] = 0,
    save: Save = False,
    as_json: AsJson = False,
) -> int:
    report = Report("hbaf-edge: interrupted calls and exits", {"calls": calls, "exits": programs, "seed": seed})
    sections = [("interrupted calls", partial(interrupted_calls, calls, seed)),
                ("exits", partial(exits, programs, seed))]  # fmt: skip
    return measure_and_report("interrupts", report, sections, save, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
