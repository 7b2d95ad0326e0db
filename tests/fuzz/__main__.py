"""Damage valid inputs and read them. Every exception except HBAFError, every crash, hang and output of a decoder is a
failure. The last input of each target is saved.

    python -m tests.fuzz --seconds 60 --seed 1     # make fuzz
    python -m tests.fuzz --again audio FILE        # one saved input

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

FOLDER = Path(".cache/fuzz")
MAX_SECONDS = 20  # for one input; more is a hang


def damage(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Make one to eight changes: bits, bytes, sizes; parts removed, repeated, inserted or copied from another input."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        # Half of the changes are at the beginning, in the header.
        offset = rng.randrange(min(len(changed), 128) if rng.random() < 0.5 else len(changed)) if changed else 0
        match rng.randrange(7):
            case 0 if changed:
                changed[offset] ^= 1 << rng.randrange(8)
            case 1:
                changed[offset : offset + 1] = rng.randbytes(1)
            case 2:
                piece = rng.choice(NUMBERS)
                changed[offset : offset + len(piece)] = piece
            case 3:
                del changed[offset : offset + rng.choice((1, 4, 100, len(changed)))]
            case 4:
                changed[offset:offset] = rng.choice(PIECES)
            case 5:
                changed[offset:offset] = changed[offset : offset + rng.randrange(64)]
            case 6 if other:
                start = rng.randrange(len(other))
                changed[offset:offset] = other[start : start + rng.randrange(1, 256)]
    return bytes(changed)


def attempt(target: Target, data: bytes) -> None:
    """Read one input; an HBAFError is a valid result."""
    faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
    try:
        target.attempt(data)
    except HBAFError as error:
        if len(str(error).splitlines()) > 1:
            raise AssertionError(f"the error has several lines: {error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def fuzz(seconds: float, seed: int) -> int:
    """Fuzz all targets alternately; return the number of inputs."""
    rng, count, end = random.Random(seed), 0, time.monotonic() + seconds
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        all_targets = targets(Path(folder))
        while time.monotonic() < end:
            for name, target in all_targets.items():
                data = damage(rng.choice(target.seeds), rng.choice(target.seeds), rng)
                (FOLDER / f"last-{name}").write_bytes(data)  # still there after a crash of the process
                attempt(target, data)
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="default: a random seed")
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "FILE"), help="read one saved input")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seed = random.randrange(1 << 30) if arguments.seed is None else arguments.seed
    if arguments.again:
        with tempfile.TemporaryDirectory() as folder:
            attempt(targets(Path(folder))[arguments.again[0]], Path(arguments.again[1]).read_bytes())
    elif arguments.inside:
        print(f"{fuzz(arguments.seconds, seed):,} inputs read, seed {seed}: no exception except HBAFError")
    else:  # in its own process, to detect crashes and output of decoders
        options = ["--seconds", str(arguments.seconds), "--seed", str(seed)]
        command = [sys.executable, "-m", "tests.fuzz", "--inside", *options]
        process = subprocess.run(command, capture_output=True, text=True, errors="replace")
        print(process.stdout.rstrip()[-5_000:])
        if process.returncode or process.stderr or len(process.stdout.splitlines()) != 1:
            print(process.stderr[-5_000:])
            sys.exit(
                f"failed with seed {seed} (exit code {process.returncode}); the last inputs are in {FOLDER}/last-TARGET"
            )


if __name__ == "__main__":
    main()
