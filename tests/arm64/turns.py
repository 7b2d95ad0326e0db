"""Predict 240 fixed turns and write labels and probabilities as JSON; run.sh runs it on both architectures.

    python tests/arm64/turns.py --out turns.json                    # 200 turns of text, 40 with audio
    python tests/arm64/turns.py --out turns.json --data ../shared/data   # as many of MELD dev and RAVDESS instead

Audio is changed in whole numbers only, so that every machine and every numpy hands over the same samples. The committed
turns avoid near ties on x86 (the closest two labels are .012 apart), since rounding decides those; corpora have some.
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
from hbaf_edge.machine import machine

DIALOGUES = Path(__file__).with_name("dialogues.txt")
EXAMPLES = Path(hbaf_edge.__file__).parent / "examples"
TEXT_TURNS, CLIPS = 200, 40
CLEAR = (2, 3, 5, 7)  # turns of the example whose words are of one emotion: a near tie would be decided by rounding

Turn = dict[str, Any]  # arguments of HBAFRuntime.predict


def text_conversations(path: Path = DIALOGUES) -> Iterator[list[Turn]]:
    """Conversations of a file of lines "speaker: text", separated by empty lines."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    for block in blocks:
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines:
            yield [dict(zip(("speaker", "text"), line.split(": ", 1))) for line in lines]


def audio_conversations(examples: Path = EXAMPLES) -> Iterator[list[Turn]]:
    """The packaged example as it is (the demo's turns), then four conversations of changed clips of it."""
    turns = [json.loads(line) for line in (examples / "conversation.jsonl").read_text(encoding="utf-8").splitlines()]
    yield [{**turn, "audio": examples / turn["audio"]} for turn in turns]
    samples = [soundfile.read(examples / turn["audio"], dtype="int16")[0] for turn in turns]
    variants = [changed_clips(turn, clip, number) for number, (turn, clip) in enumerate(zip(turns, samples))]
    yield from map(list, zip(*variants))


def changed_clips(turn: Turn, clip: np.ndarray, number: int) -> list[Turn]:
    """One clip of (samples,) int16 at 16 kHz in four forms, short because an emulated second takes its time."""
    kept = {key: turn[key] for key in (("speaker", "text") if number in CLEAR else ("speaker",))}
    noise = np.random.default_rng(number).integers(-400, 401, 16_000)
    short = clip[:16_000]
    return [
        {**kept, "audio": clip[-24_000:] // 16, "sample_rate": 16_000},  # quiet: -24 dB
        {**kept, "audio": clip[:24_000:2], "sample_rate": 8_000},
        {**kept, "audio": (short // 2 + noise).astype(np.int16), "sample_rate": 16_000},
        {**kept, "audio": np.stack([short.repeat(3), short.repeat(3) // 2], axis=1), "sample_rate": 48_000},
    ]


def corpus_conversations(data: Path) -> Iterator[list[Turn]]:
    """The first dialogues of MELD dev as text, and clips of RAVDESS from all its actors, each for itself."""
    with (data / "meld" / "dev_sent_emo.csv").open(encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.DictReader(file), TEXT_TURNS))
    for _, dialogue in itertools.groupby(rows, key=lambda row: row["Dialogue_ID"]):
        yield [{"speaker": row["Speaker"], "text": row["Utterance"]} for row in dialogue]
    with (data / "ravdess" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        clips = list(csv.DictReader(file))
    for row in clips[:: len(clips) // CLIPS - 1][:CLIPS]:  # one less, so that the steps pass through all actors
        yield [{"audio": data / "ravdess" / row["file"]}]


def predict(runtime: hbaf_edge.HBAFRuntime, turns: list[Turn]) -> list[dict[str, Any]]:
    """One conversation, turn by turn."""
    chat = runtime.conversation()
    predictions = [runtime.predict(**turn, conversation=chat) for turn in turns]
    return [{"label": p.label, "modalities": list(p.modalities), "probabilities": p.probabilities} for p in predictions]


def describe_machine(emulator: str | None) -> dict[str, Any]:
    """Processor and versions. An emulated process would read the host's processor out of /proc."""
    return machine() | ({"cpu": emulator, "vnni": None, "flags": None} if emulator else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data", type=Path, help="folder with meld/ and ravdess/; default: the committed material")
    parser.add_argument("--emulator", help="what stands in for the processor, if anything does")
    options = parser.parse_args()
    if options.data:
        conversations = list(corpus_conversations(options.data))
    else:
        conversations = [*audio_conversations(), *text_conversations()]  # the slow ones first
    # One operator thread per conversation keeps all cores busy, and exercises concurrent calls on the way.
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
