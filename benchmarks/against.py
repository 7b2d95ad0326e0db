"""Compare speed and probabilities of this version with another version of the project.

    git worktree add ../before main~10
    python -m benchmarks.against ../before --save

Each version runs in its own process, with this interpreter and this version's default bundle. Their turns are
interleaved in one run: a text turn, and a turn with 3 s of audio and text, both in a conversation with a full window.
Then both predict 200 turns, every fifth with audio, and the probabilities are compared bit for bit.
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

from benchmarks.report import AsJson, Repeats, Save, measure_and_report, run, verdict
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import Series, interleave, ratio, single_value
from hbaf_edge.bench.turns import CLIP, TEXT
from hbaf_edge.bundle import DEFAULT
from hbaf_edge.errors import InputError

TURNS = 200
GOALS = {"p50": 1.02, "p99": 1.10}
# Runs in either version, so it uses only the public API, which both have.
PROGRAM = """
import json, sys, time, numpy as np, soundfile, hbaf_edge
bundle, clip, text, turns = json.loads(sys.argv[1])
runtime = hbaf_edge.HBAFRuntime(bundle); runtime.warmup()
samples = np.tile(soundfile.read(clip, dtype="float32")[0], 3)[:48000]
past = runtime.conversation()
for n in range(32): runtime.predict(text=f"And then, {n}.", speaker="ab"[n % 2], conversation=past)
def turn_ms(with_audio):
    conversation = past.fork(); audio = {"audio": samples, "sample_rate": 16000} if with_audio else {}
    start = time.perf_counter()
    runtime.predict(text=text, speaker="a", conversation=conversation, **audio)
    return (time.perf_counter() - start) * 1e3
def all_probabilities():
    conversation, rng = runtime.conversation(), np.random.default_rng(0)
    return [list(runtime.predict(text=f"{text} {rng.integers(100)}", speaker="ab"[n % 2], conversation=conversation,
            **({"audio": samples[: 16000 + 160 * n], "sample_rate": 16000} if n % 5 == 0 else {})
            ).probabilities.values()) for n in range(turns)]
print(hbaf_edge.__file__, flush=True)
commands = {"text": lambda: turn_ms(False), "audio": lambda: turn_ms(True), "all": all_probabilities}
for line in sys.stdin: print(json.dumps(commands[line.strip()]()), flush=True)
"""


class Version:
    """A process that runs the package of a checkout.

    Args:
        root: root folder of the checkout.

    Raises:
        InputError: the folder does not contain the package.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "hbaf_edge" / "__init__.py").is_file():
            raise InputError(f"there is no hbaf_edge in {root}; give the root of a checkout of another version")
        settings = json.dumps([str(DEFAULT), str(CLIP), TEXT, TURNS])
        environment = {**os.environ, "PYTHONPATH": str(root.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=root, env=environment,
        )  # fmt: skip
        self.path = self._read()

    def request(self, command: str) -> Any:
        """Return the milliseconds of a turn ("text" or "audio"), or the probabilities of all turns ("all")."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError("the process of one version ended early; its error output is above")
        return line.strip()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def speed(before: Version, now: Version, repeats: int) -> Section:
    """Time turns of both versions, interleaved."""
    kinds = {"text": "text", "3 s and text": "audio"}
    candidates = {f"{kind}, {name}": partial(version.request, command) for kind, command in kinds.items()
                  for name, version in (("before", before), ("now", now))}  # fmt: skip
    times = interleave(repeats, candidates)
    rows, measures = list[list[Cell]](), dict[str, Mapping[str, Any]]()
    for kind in kinds:
        old, new = (times[f"{kind}, {name}"] for name in ("before", "now"))
        p50, p99 = ratio(new, old), float(np.percentile(new, 99) / np.percentile(old, 99))
        for name, values in (("before", old), ("now", new)):
            series = Series.of(values)
            rows.append([f"{kind}, {name}", series.p50, series.p90, series.p99, None])
        rows += [[f"{kind}: now ÷ before, p50", p50["p50"], None, None, verdict(p50["p50"], "≤", GOALS["p50"])],
                 [f"{kind}: now ÷ before, p99", None, None, p99, verdict(p99, "≤", GOALS["p99"])]]  # fmt: skip
        measures |= {f"{kind}, p50": p50, f"{kind}, p99": single_value(p99)}
    head = ("turn", "p50", "p90", "p99", "goal")
    return Section("speed", "A turn before and now, ms", head, rows, "", measures, "ratio")


def equality(before: Version, now: Version) -> Section:
    """Compare the probabilities of the same turns."""
    old, new = (np.array(version.request("all")) for version in (before, now))
    differing, largest = int((old != new).any(1).sum()), float(np.abs(old - new).max())
    rows: list[list[Cell]] = [["turns that differ in any bit", differing, verdict(differing, "≤", 0)],
                              ["largest difference", largest, None]]  # fmt: skip
    return Section("same", f"Probabilities of {TURNS} turns", ("what", "value", "goal"), rows, "",
                   {"turns that differ": single_value(differing)}, "")  # fmt: skip


def main(
    checkout: Annotated[Path, typer.Argument(help="root folder of a checkout of the other version")],
    repeats: Repeats = 401,
    save: Save = False,
    as_json: AsJson = False,
) -> int:
    before, now = Version(checkout), Version(Path(__file__).resolve().parents[1])
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True)
    settings = {"before": commit.stdout.strip()[:12], "repeats": repeats, "threads": "default"}
    report = Report("hbaf-edge: this version against another", settings)
    sections = [("speed", partial(speed, before, now, repeats)), ("equality", partial(equality, before, now))]
    try:
        return measure_and_report("against", report, sections, save, as_json=as_json)
    finally:
        before.close()
        now.close()


if __name__ == "__main__":
    run(main, __doc__)
