"""Predict 240 fixed turns and write labels and probabilities as JSON; run.sh runs it on both architectures.

    python tests/arm64/turns.py --out turns.json                    # 200 turns with text, 40 with audio
    python tests/arm64/turns.py --out turns.json --data ../shared/data   # the same numbers from MELD dev and RAVDESS

Audio is modified with integer arithmetic, so all machines and versions of numpy produce the same samples. The committed
turns avoid near ties, which rounding would decide: on x86 the two likeliest labels differ by .012 or more. The corpora
contain near ties.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import hbaf_edge
from hbaf_edge.bundle import load_bundle
from hbaf_edge.machine import machine_info

DIALOGUES = Path(__file__).with_name("dialogues.txt")
EXAMPLES = Path(hbaf_edge.__file__).parent / "examples"
TEXT_TURNS, CLIPS = 200, 40
WITH_TEXT = (2, 3, 5, 7)  # turns of the example whose text is clearly of one emotion, which avoids near ties

Turn = dict[str, Any]  # arguments of HBAFRuntime.predict


def text_conversations(path: Path = DIALOGUES) -> Iterator[list[Turn]]:
    """Read conversations from a file with lines "speaker: text"; empty lines separate conversations."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    for block in blocks:
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines:
            yield [dict(zip(("speaker", "text"), line.split(": ", 1))) for line in lines]


def audio_conversations(examples: Path = EXAMPLES) -> Iterator[list[Turn]]:
    """Yield the packaged example (the turns of the demo), then four conversations of modified clips of it."""
    turns = [json.loads(line) for line in (examples / "conversation.jsonl").read_text(encoding="utf-8").splitlines()]
    yield [{**turn, "audio": examples / turn["audio"]} for turn in turns]
    samples = [soundfile.read(examples / turn["audio"], dtype="int16")[0] for turn in turns]
    variants = [modified_clips(turn, clip, number) for number, (turn, clip) in enumerate(zip(turns, samples))]
    yield from map(list, zip(*variants))


def modified_clips(turn: Turn, clip: np.ndarray, number: int) -> list[Turn]:
    """Return four variants of a clip of (samples,) int16 at 16 kHz, at most 1.5 s long because emulation is slow."""
    base = {key: turn[key] for key in (("speaker", "text") if number in WITH_TEXT else ("speaker",))}
    noise = np.random.default_rng(number).integers(-400, 401, 16_000)
    short = clip[:16_000]
    return [
        {**base, "audio": clip[-24_000:] // 16, "sample_rate": 16_000},  # quiet: -24 dB
        {**base, "audio": clip[:24_000:2], "sample_rate": 8_000},
        {**base, "audio": (short // 2 + noise).astype(np.int16), "sample_rate": 16_000},
        {**base, "audio": np.stack([short.repeat(3), short.repeat(3) // 2], axis=1), "sample_rate": 48_000},
    ]


def corpus_conversations(data: Path) -> Iterator[list[Turn]]:
    """Yield the first dialogues of MELD dev as text, and clips of all RAVDESS actors as conversations of one turn."""
    with (data / "meld" / "dev_sent_emo.csv").open(encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.DictReader(file), TEXT_TURNS))
    for _, dialogue in itertools.groupby(rows, key=lambda row: row["Dialogue_ID"]):
        yield [{"speaker": row["Speaker"], "text": row["Utterance"]} for row in dialogue]
    with (data / "ravdess" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        clips = list(csv.DictReader(file))
    for row in clips[:: len(clips) // CLIPS - 1][:CLIPS]:  # the step is one smaller so that all actors occur
        yield [{"audio": data / "ravdess" / row["file"]}]


def predict(runtime: hbaf_edge.HBAFRuntime, turns: list[Turn]) -> list[dict[str, Any]]:
    """Predict one conversation, turn by turn."""
    conversation = runtime.conversation()
    predictions = [runtime.predict(**turn, conversation=conversation) for turn in turns]
    return [{"label": p.label, "modalities": list(p.modalities), "probabilities": p.probabilities} for p in predictions]


def describe_machine(emulator: str | None) -> dict[str, Any]:
    """Return processor and versions. In an emulated process, /proc describes the host's processor."""
    return machine_info() | ({"cpu": emulator, "vnni": None, "flags": None} if emulator else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data", type=Path, help="folder with meld/ and ravdess/; default: the committed turns")
    parser.add_argument("--emulator", help="name of the emulated processor, if any")
    options = parser.parse_args()
    if options.data:
        conversations = list(corpus_conversations(options.data))
    else:
        conversations = [*audio_conversations(), *text_conversations()]  # audio first, because it is slower
    # One thread per conversation keeps all cores busy and tests concurrent calls.
    with hbaf_edge.HBAFRuntime(threads=1) as runtime, ThreadPoolExecutor(os.cpu_count()) as pool:
        predictions = list(pool.map(lambda turns: predict(runtime, turns), conversations))
    result = {
        "machine": describe_machine(options.emulator),
        "bundle": load_bundle().key,
        "material": "MELD dev and RAVDESS" if options.data else "committed",
        "turns": list(itertools.chain(*predictions)),
    }
    options.out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
