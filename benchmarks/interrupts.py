"""Does anything hang or abort when calls are broken off, or when the program ends in the middle of a turn?

    python -m benchmarks.interrupts                        # a minute
    python -m benchmarks.interrupts --calls 10000 --exits 200 --save

Calls are broken off by a signal at a random moment, as a timeout or Ctrl-C does it; from time to time another thread,
which no signal reaches, has to get its answer, and a conversation has to hold as many turns as were committed. Programs
end while a daemon thread predicts, audio is still fed or submitted turns are waiting: each has to end with its own exit
code and nothing on standard error, and every turn that was submitted has to be answered.
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

from benchmarks.report import Save, conclude, run, verdict
from hbaf_edge import Conversation, HBAFRuntime
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import single
from hbaf_edge.bench.turns import RATE, speech

CHECK_EVERY = 250  # calls
PATIENCE = 30.0  # seconds after which a call counts as hanging
TEXT = "Well, hello there."
EXITS = {
    "a daemon thread predicts": """
def work():
    while True: r.predict(x, sample_rate=16000, text='hello')
threading.Thread(target=work, daemon=True).start(); time.sleep(delay); sys.exit(3)""",
    "a live turn is fed by a daemon thread": """
def work():
    turn = r.begin()
    while True: turn.feed(x[:4800], 48000)
threading.Thread(target=work, daemon=True).start(); time.sleep(delay); sys.exit(3)""",
    "turns are submitted": """
for n in range(8): r.submit(x, sample_rate=16000, text='hello').add_done_callback(lambda f: print(f.result().label))
sys.exit(3)""",
}
PROGRAM = """
import sys, threading, time, numpy as np, hbaf_edge
delay = float(sys.argv[1]); r = hbaf_edge.HBAFRuntime(max_batch_size=int(sys.argv[2]))
x = np.random.default_rng(0).normal(0, .1, 16000).astype(np.float32)
"""


class Interrupted(BaseException):
    """A timeout by signal; like KeyboardInterrupt no Exception."""


def _raise(number: int, frame: object) -> None:
    raise Interrupted


def hangs(call: Callable[[], object]) -> bool:
    """Whether a call on another thread, where no signal can reach it, does not come back."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return thread.is_alive()


def break_off(call: Callable[[], object], most: float, rng: random.Random) -> bool:
    """One call with a signal at a random moment of the first `most` seconds; whether the signal ended it."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, most))
            call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        return True
    return False


def call_of(kind: str, runtime: HBAFRuntime, chat: Conversation) -> Callable[[], object]:
    """A call of a kind of turn."""
    audio: dict[str, Any] = {"audio": speech(1.0), "sample_rate": RATE}

    def live() -> None:
        turn = runtime.begin(conversation=chat)
        turn.feed(audio["audio"], RATE)
        turn.finish(TEXT)

    calls: dict[str, Callable[[], object]] = {
        "text": partial(runtime.predict, text=TEXT, conversation=chat),
        "audio and text": partial(runtime.predict, **audio, text=TEXT, conversation=chat),
        "a live turn": live,
        "a batch": lambda: runtime.predict_batch([{"text": TEXT, "conversation": chat}, {"text": TEXT}]),
    }
    return calls[kind]


def interrupted(calls: int, seed: int, step: Callable[[], object] = lambda: None) -> Section:
    """Calls of every kind that are broken off, until so many were."""
    before, rng = signal.signal(signal.SIGALRM, _raise), random.Random(seed)
    rows: list[list[Cell]] = []
    kinds = ("text", "audio and text", "a live turn", "a batch")
    try:
        for kind in kinds:
            with HBAFRuntime() as runtime:
                rows.append([kind, *_interrupted(runtime, kind, calls // len(kinds), rng)])
            step()
    finally:
        signal.signal(signal.SIGALRM, before)
    hung = sum(int(row[3] or 0) for row in rows)
    return Section("interrupted", "Calls that a signal broke off", ("call", "made", "broken off", "hung"),
                   [*rows, ["hangs", None, None, verdict(hung, "≤", 0)]], "", {"hangs": single(hung)}, "")  # fmt: skip


def _interrupted(runtime: HBAFRuntime, kind: str, calls: int, rng: random.Random) -> tuple[int, int, int]:
    """Calls made, broken off, and whether one hung, which ends it."""
    chat = runtime.conversation()
    call = call_of(kind, runtime, chat)
    call()
    begun = time.perf_counter()
    call()
    most, made, broken = 1.2 * (time.perf_counter() - begun), 0, 0
    while broken < calls:
        made += 1
        broken += break_off(call, most, rng)
        is_time = made % CHECK_EVERY == 0 or broken == calls
        if is_time and hangs(lambda: runtime.predict(text=TEXT, conversation=chat)):
            return made, broken, 1
    return made, broken, 0


def exits(count: int, seed: int, step: Callable[[], object] = lambda: None) -> Section:
    """Programs that end in the middle of a turn."""
    rng, rows, aborts, lost = random.Random(seed), list[list[Cell]](), 0, 0
    for kind, program in EXITS.items():
        codes, answers = [], []
        for n in range(-(-count // len(EXITS))):
            argv = [sys.executable, "-c", PROGRAM + program, f"{rng.uniform(0, 0.3):.4f}", str(1 + 3 * (n % 2))]
            ended = subprocess.run(argv, capture_output=True, text=True, timeout=120)
            codes.append(ended.returncode == 3 and not ended.stderr.strip())
            answers.append(len(ended.stdout.splitlines()))
            step()
        aborts += codes.count(False)
        if kind == "turns are submitted":
            lost = sum(8 - n for n in answers)
        rows.append([kind, len(codes), codes.count(False)])
    rows += [["aborts", None, verdict(aborts, "≤", 0)], ["answers lost", None, verdict(lost, "≤", 0)]]
    return Section("exits", "Programs that ended while something was computed",
                   ("the program ends while", "runs", "other exit codes or messages"), rows, "",
                   {"aborts": single(aborts), "answers lost": single(lost)}, "")  # fmt: skip


def main(
    calls: Annotated[int, typer.Option(min=4, help="that are broken off")] = 1000,
    programs: Annotated[int, typer.Option("--exits", min=3, help="programs that end in mid-turn")] = 12,
    seed: Annotated[int, typer.Option(help="of the moments")] = 0,
    save: Save = False,
) -> int:
    report = Report("hbaf-edge: interrupted calls and exits", {"calls": calls, "exits": programs, "seed": seed})
    work = [("interrupted", partial(interrupted, calls, seed)), ("exits", partial(exits, programs, seed))]
    return conclude("interrupts", report, work, save)


if __name__ == "__main__":
    run(main, __doc__)
