"""Damage whole inputs and read them, for so many seconds; any exception but our own, a crash, a hang or anything that a
decoder prints is a failure, and what caused it is kept.

    python -m tests.fuzz --seconds 60 --seed 1     # make fuzz
    python -m tests.fuzz --again audio FILE        # one input that was kept

Targets: audio decoding, bundles (zip and manifest), saved conversations, lines of a dialogue, transcripts.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hbaf_edge.errors import HBAFError
from tests.fuzz.targets import NUMBERS, PIECES, Target, targets

KEPT = Path(".cache/fuzz")
LONGEST = 20  # seconds for one input; more is a hang


def damage(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to eight changes: bits, bytes, sizes in the header, pieces cut, repeated, put in or taken from another."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        # Half of the changes hit the beginning, where headers are.
        place = rng.randrange(min(len(changed), 128) if rng.random() < 0.5 else len(changed)) if changed else 0
        match rng.randrange(7):
            case 0 if changed:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place : place + 1] = rng.randbytes(1)
            case 2:
                piece = rng.choice(NUMBERS)
                changed[place : place + len(piece)] = piece
            case 3:
                del changed[place : place + rng.choice((1, 4, 100, len(changed)))]
            case 4:
                changed[place:place] = rng.choice(PIECES)
            case 5:
                changed[place:place] = changed[place : place + rng.randrange(64)]
            case 6 if other:
                start = rng.randrange(len(other))
                changed[place:place] = other[start : start + rng.randrange(1, 256)]
    return bytes(changed)


def attempt(target: Target, data: bytes) -> None:
    """Read one input; an error of ours is a good end."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    try:
        target.attempt(data)
    except HBAFError as error:
        if len(str(error).splitlines()) > 1:
            raise AssertionError(f"an error of several lines: {error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def fuzz(seconds: float, seed: int) -> int:
    """All targets in turn; returns how many inputs were read."""
    rng, count, until = random.Random(seed), 0, time.monotonic() + seconds
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        every = targets(Path(folder))
        while time.monotonic() < until:
            for name, target in every.items():
                data = damage(rng.choice(target.seeds), rng.choice(target.seeds), rng)
                (KEPT / f"last-{name}").write_bytes(data)  # a crash of the process leaves it there
                attempt(target, data)
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "FILE"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seed = random.randrange(1 << 30) if given.seed is None else given.seed
    if given.again:
        with tempfile.TemporaryDirectory() as folder:
            attempt(targets(Path(folder))[given.again[0]], Path(given.again[1]).read_bytes())
    elif given.inside:
        print(f"{fuzz(given.seconds, seed):,} inputs read, seed {seed}: no exception but our own")
    else:  # in a process of its own: a decoder's crash must be seen, and so must what it prints
        command = [sys.executable, "-m", "tests.fuzz", "--inside", "--seconds", str(given.seconds), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        print(done.stdout.rstrip()[-5_000:])
        if done.returncode or done.stderr or len(done.stdout.splitlines()) != 1:
            print(done.stderr[-5_000:])
            sys.exit(
                f"failed with seed {seed} (exit code {done.returncode}); the last inputs are in {KEPT}/last-TARGET"
            )


if __name__ == "__main__":
    main()
