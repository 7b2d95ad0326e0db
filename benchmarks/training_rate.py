"""How fast each way of training goes: utterances a second, memory, and the share of the machine's matrix rate.

    python -m benchmarks.training_rate                          # on the CPU, or on a GPU where torch sees one
    python -m benchmarks.training_rate --precision bf16 --save

One step of real training (forward, backward, AdamW) on made dialogues of 12 words and 3 s of sound: HBAF alone on
cached states, and with the text encoder, the audio encoder, or both learning whole. Model FLOPs are counted, not
estimated; the matrix rate is measured in the same run, in the same precision. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import finish, percentiles, show
from hbaf_edge.machine import machine
from training import loop
from training.begin import begin
from training.config import MELD_LABELS, TrainConfig
from training.corpora.records import Corpus, Dialogue, Utterance
from training.stages import CorpusStage, Group

WORDS = "I really did not expect to see all of you here tonight"
SECONDS = 3.0
KINDS: dict[str, dict[str, Any]] = {
    "HBAF on cached states": {},
    "and the text encoder": {"text_tuning": "full"},
    "and the audio encoder": {"audio_tuning": "full"},
    "and both": {"text_tuning": "full", "audio_tuning": "full"},
}


def made(folder: Path, turns: int) -> Corpus:
    """A corpus of one dialogue: every turn has words and a clip of its own."""
    rng = np.random.default_rng(0)
    found = []
    for n in range(turns):
        path = folder / f"{n}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(int(SECONDS * 16_000)), 16_000)
        found.append(Utterance(WORDS, n % len(MELD_LABELS), "ab"[n % 2], path))
    dialogues = tuple(Dialogue(split, split, tuple(found)) for split in ("train", "dev"))
    return Corpus("made", MELD_LABELS, dialogues)


def matrix_rate(device: torch.device, kind: torch.dtype) -> float:
    """FLOP/s of a large square product, the best of several."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = 0.0
    for _ in range(8):
        best = max(best, 2 * size**3 / _seconds(lambda: a @ b, device))
    return best


def _seconds(work: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(config: TrainConfig, corpus: Corpus, device: torch.device, steps: int, out: Path) -> dict[str, Any]:
    """Steps of one way of training on the same batch."""
    learner, about = begin(config, corpus, None, None)
    learner.to(device)
    stage = CorpusStage(config, corpus, [], learner)
    run = loop.Run(config, learner, stage, out, about, {})
    run.progress = loop.state.Progress()
    learner.train()
    turns = [stage.material.shown(d, "audio+text") for d in corpus.split("train")]
    group: Group = turns
    with FlopCounterMode(display=False) as counter:
        first = _seconds(lambda: run._step([group]), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [_seconds(lambda: run._step([group]), device) for _ in range(steps)]
    count = sum(map(len, group))
    p50 = float(np.median(times))
    return {
        "first_step_s": round(first, 3),
        "step_s": percentiles(times),
        "utterances_per_second": round(count / p50, 1),
        "gflop_per_utterance": round(counter.get_total_flops() / count / 1e9, 2),
        "flops_per_second": counter.get_total_flops() / p50,
        "gpu_memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, help="utterances in a batch (60 on a CPU, 512 on a GPU)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and given.precision != "float32":
        raise SystemExit("half precision trains on a GPU only; on a CPU it is many times slower than float32")
    kind = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[given.precision]
    turns = given.turns or (512 if device.type == "cuda" else 60)
    rate = matrix_rate(device, kind)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = made(Path(folder), turns)
        base = TrainConfig(epochs=1, precision=given.precision, turns=turns, max_turns=turns)
        for name, tuning in KINDS.items():
            found[name] = measure(replace(base, **tuning), corpus, device, given.steps, Path(folder))
            found[name]["share_of_matrix_rate"] = round(found[name].pop("flops_per_second") / rate, 3)
    rows = [
        [name, *(str(r[k]) for k in ("utterances_per_second", "gflop_per_utterance", "share_of_matrix_rate"))]
        for name, r in found.items()
    ]
    show(f"training on {device.type}, {turns} utterances a step", rows, ("what learns", "utt/s", "GFLOP/utt", "share"))
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    about = {**machine(), "gpu": gpu, "torch": torch.__version__, "threads": given.threads}
    result = {"machine": about, "precision": given.precision, "matrix_tflops": round(rate / 1e12, 3), "training": found}
    finish(f"training_rate_{device.type}_{given.precision}", result, given.save)


if __name__ == "__main__":
    main()
