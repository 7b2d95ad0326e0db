"""Many conversations at once: threads that share a runtime against processes; memory (benchmarks/incremental.py)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.speech import RATE, sound
from hbaf_edge.stats import resident_mb


def said(place: int, n: int) -> dict[str, Any]:
    """Turn n of conversation `place`: words, and in one of eight a second of sound."""
    heard: dict[str, Any] = {"audio": sound(1.0), "sample_rate": RATE} if (place + n) % 8 == 0 else {}
    return {"text": f"Conversation {place}, and then we went home {n} times.", "speaker": "ab"[n % 2], **heard}


def converse(runtime: HBAFRuntime, place: int, turns: int) -> list[str | None]:
    """One conversation's labels."""
    chat = runtime.conversation()
    return [runtime.predict(conversation=chat, **said(place, n)).label for n in range(turns)]


ALONE = (
    "import time; from benchmarks.many import *; r = HBAFRuntime(threads=1); r.warmup(); input(); "
    "t = time.perf_counter(); [converse(r, p, {turns}) for p in range({first}, {last})]; print(time.perf_counter() - t)"
)


def threads_on_one(conversations: int = 16, turns: int = 200) -> dict[str, Any]:
    """Conversations on as many threads of one runtime, against half of them in each of two processes."""
    runtime = HBAFRuntime(threads=1)
    runtime.warmup()
    serial = [converse(runtime, place, turns) for place in range(conversations)]
    found: dict[int, list[str | None]] = {}
    workers = [
        threading.Thread(target=lambda place=place: found.update({place: converse(runtime, place, turns)}))
        for place in range(conversations)
    ]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = time.perf_counter() - start
    half, pipe = conversations // 2, subprocess.PIPE
    scripts = [ALONE.format(turns=turns, first=first, last=first + half) for first in (0, half)]
    alone = [subprocess.Popen([sys.executable, "-c", s], stdin=pipe, stdout=pipe, text=True) for s in scripts]
    time.sleep(5)  # both have loaded and wait for a line
    seconds = [float(said) for said in gathered(alone)]
    return {
        "equal_to_serial": [found[place] for place in range(conversations)] == serial,
        "one_runtime_turns_per_s": round(conversations * turns / together, 1),
        "two_processes_turns_per_s": round(sum(half * turns / s for s in seconds), 1),
    }


def gathered(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let all start at once; what each prints."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0] for process in processes]


def memory(turns: int = 20_000, conversations: int = 200) -> dict[str, Any]:
    """Resident MB once every conversation's window is full, and at the end; conversations take turns.

    Until then memory grows by design: a new conversation's rings are touched slot by slot.
    """
    runtime = HBAFRuntime(threads=2)
    runtime.warmup()
    chats = [runtime.conversation() for _ in range(conversations)]
    voices = {seconds: sound(seconds) for seconds in (0.5, 1.0, 2.0)}
    sizes = []
    for n in range(turns):
        heard: dict[str, Any] = {"audio": voices[(0.5, 1.0, 2.0)[n % 3]], "sample_rate": RATE} if n % 16 == 0 else {}
        runtime.observe(text=f"And then, {n}.", speaker="ab"[n % 2], conversation=chats[n % conversations], **heard)
        if n in (2 * turns // 5, turns - 1):
            sizes.append(resident_mb())
    return {"turns": turns, "conversations": conversations, "windows_full_mb": sizes[0], "at_the_end_mb": sizes[1]}
