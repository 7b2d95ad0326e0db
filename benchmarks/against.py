"""Is a turn as fast as it was in another version, and does it come out the same?

    git worktree add ../before main~10
    python -m benchmarks.against ../before --save

Both versions run in processes of their own, with this interpreter and this version's default bundle, and take turns in
one run: a turn of text and one of 3 s and text, in a conversation whose window is full. Then both predict 200 turns,
one in five with audio, whose probabilities are compared bit for bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.report import Repeats, Save, conclude, run, verdict
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import Series, in_turn, ratio, single
from hbaf_edge.bench.turns import CLIP, TEXT
from hbaf_edge.bundle import DEFAULT
from hbaf_edge.errors import InputError

TURNS = 200
GOALS = {"p50": 1.02, "p99": 1.10}
# Runs in either version: public names alone, which both have.
PROGRAM = """
import json, sys, time, numpy as np, soundfile, hbaf_edge
bundle, clip, text, turns = json.loads(sys.argv[1])
r = hbaf_edge.HBAFRuntime(bundle); r.warmup()
x = np.tile(soundfile.read(clip, dtype="float32")[0], 3)[:48000]
past = r.conversation()
for n in range(32): r.predict(text=f"And then, {n}.", speaker="ab"[n % 2], conversation=past)
def turn(audio):
    chat = past.fork(); given = {"audio": x, "sample_rate": 16000} if audio else {}
    t = time.perf_counter(); r.predict(text=text, speaker="a", conversation=chat, **given)
    return (time.perf_counter() - t) * 1e3
def all_turns():
    chat, rng = r.conversation(), np.random.default_rng(0)
    return [list(r.predict(text=f"{text} {rng.integers(100)}", speaker="ab"[n % 2], conversation=chat,
            **({"audio": x[: 16000 + 160 * n], "sample_rate": 16000} if n % 5 == 0 else {})).probabilities.values())
            for n in range(turns)]
print(hbaf_edge.__file__, flush=True)
answers = {"t": lambda: turn(0), "a": lambda: turn(1), "all": all_turns}
for line in sys.stdin: print(json.dumps(answers[line.strip()]()), flush=True)
"""


class Version:
    """A process that runs the package of a checkout.

    Args:
        root: of the checkout.

    Raises:
        InputError: it holds no package.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "hbaf_edge" / "__init__.py").is_file():
            raise InputError(f"there is no hbaf_edge in {root}; give the root of a checkout of another version")
        about = json.dumps([str(DEFAULT), str(CLIP), TEXT, TURNS])
        environment = {**os.environ, "PYTHONPATH": str(root.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, about], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
            env=environment,
        )  # fmt: skip
        self.path = self._read()

    def ask(self, what: str) -> Any:
        """Milliseconds of a turn of text ("t"), or with audio ("a"); or probabilities of all turns ("all")."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError("a version's process ended early; what it printed is above")
        return line.strip()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def speed(before: Version, now: Version, repeats: int) -> Section:
    """Turns of both, interleaved."""
    kinds = {"text": "t", "3 s and text": "a"}
    sides = {(kind, name): partial(version.ask, letter) for kind, letter in kinds.items()
             for name, version in (("before", before), ("now", now))}  # fmt: skip
    times = in_turn(repeats, {f"{kind}, {name}": side for (kind, name), side in sides.items()})
    rows, measures = list[list[Cell]](), dict[str, Mapping[str, Any]]()
    for kind in kinds:
        old, new = (times[f"{kind}, {name}"] for name in ("before", "now"))
        series = [Series.of(values) for values in (old, new)]
        p50, p99 = ratio(new, old), float(np.percentile(new, 99) / np.percentile(old, 99))
        rows += [[kind, s.p50, s.p90, s.p99, None] for s in series]
        rows += [[f"{kind}: now ÷ before, p50", p50["p50"], None, None, verdict(p50["p50"], "≤", GOALS["p50"])],
                 [f"{kind}: now ÷ before, p99", None, None, p99, verdict(p99, "≤", GOALS["p99"])]]  # fmt: skip
        measures |= {f"{kind}, p50": p50, f"{kind}, p99": single(p99)}
    return Section("speed", "A turn before (first row) and now, ms", ("turn", "p50", "p90", "p99", "goal"), rows, "",
                   measures, "ratio")  # fmt: skip


def same(before: Version, now: Version) -> Section:
    """Probabilities of the same turns."""
    old, new = (np.array(version.ask("all")) for version in (before, now))
    differ, most = int((old != new).any(1).sum()), float(np.abs(old - new).max())
    rows: list[list[Cell]] = [["turns that differ in any bit", differ, verdict(differ, "≤", 0)]]
    rows.append(["largest difference", most, None])
    return Section("same", f"Probabilities of {TURNS} turns", ("what", "value", "goal"), rows, "",
                   {"turns that differ": single(differ)}, "")  # fmt: skip


def main(
    checkout: Annotated[Path, typer.Argument(help="root of a checkout of the other version")],
    repeats: Repeats = 401,
    save: Save = False,
) -> int:
    before, now = Version(checkout), Version(Path(__file__).resolve().parents[1])
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True)
    settings = {"before": commit.stdout.strip()[:12], "repeats": repeats, "threads": "default"}
    report = Report("hbaf-edge: this version against another", settings)
    try:
        return conclude("against", report, [("speed", lambda: speed(before, now, repeats)),
                                            ("same", lambda: same(before, now))], save)  # fmt: skip
    finally:
        before.close()
        now.close()


if __name__ == "__main__":
    run(main, __doc__)
