"""How fast each way of training goes: utterances a second, memory, and the share of the machine's matrix rate.

    python -m benchmarks.training_rate                          # on the CPU, or on a GPU where torch sees one
    python -m benchmarks.training_rate --precision bf16 --save

One step of real training (forward, backward, AdamW) on synthetic dialogues of 12 words and 3 s of audio: HBAF alone on
cached states, and with the text encoder, the audio encoder, or both learning whole. Model FLOPs are counted, not
estimated; the matrix rate is measured in the same run, in the same precision.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import soundfile
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.insides import training_step
from benchmarks.report import Save, Threads, conclude, run
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import Series, rounded
from hbaf_edge.bench.turns import TEXT
from hbaf_edge.errors import InputError
from training import loop
from training.begin import begin
from training.config import MELD_LABELS, TrainConfig
from training.corpora.records import Corpus, Dialogue, Utterance
from training.stages import CorpusStage

SECONDS = 3.0
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS: dict[str, dict[str, Any]] = {
    "HBAF on cached states": {},
    "and the text encoder": {"text_tuning": "full"},
    "and the audio encoder": {"audio_tuning": "full"},
    "and both": {"text_tuning": "full", "audio_tuning": "full"},
}


def synthetic(folder: Path, turns: int) -> Corpus:
    """A corpus of one dialogue: every turn has text and a clip of its own."""
    rng = np.random.default_rng(0)
    utterances = []
    for n in range(turns):
        path = folder / f"{n}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(int(SECONDS * 16_000)), 16_000)
        utterances.append(Utterance(TEXT, n % len(MELD_LABELS), "ab"[n % 2], path))
    dialogues = tuple(Dialogue(split, split, tuple(utterances)) for split in ("train", "dev"))
    return Corpus("synthetic", MELD_LABELS, dialogues)


def matrix_rate(device: torch.device, kind: torch.dtype) -> float:
    """FLOP/s of a large square product, the best of several."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = 0.0
    for _ in range(8):
        best = max(best, 2 * size**3 / _seconds(lambda: a @ b, device))
    return best


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(config: TrainConfig, corpus: Corpus, device: torch.device, steps: int, out: Path) -> dict[str, Any]:
    """Steps of one way of training on the same batch.

    Returns:
        series of utterances a second, GFLOP of an utterance, FLOP/s, and GB of GPU memory or None.
    """
    learner, about = begin(config, corpus, None, None)
    learner.to(device)
    stage = CorpusStage(config, corpus, [], learner)
    learner.train()
    turns = [stage.material.shown(d, "audio+text") for d in corpus.split("train")]
    step = training_step(loop.Run(config, learner, stage, out, about, {}), turns)
    with FlopCounterMode(display=False) as counter:
        _seconds(step, device)  # the first one allocates
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, count = [_seconds(step, device) for _ in range(steps)], sum(map(len, turns))
    return {
        "rate": Series.of([count / s for s in seconds]),
        "gflop": round(counter.get_total_flops() / count / 1e9, 2),
        "flops_per_second": counter.get_total_flops() / float(np.median(seconds)),
        "gpu_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }


def section(base: TrainConfig, device: torch.device, steps: int) -> Section:
    """All ways of training, beside the rate of a large product."""
    matrix = matrix_rate(device, DTYPES[base.precision])
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic(Path(folder), base.turns)
        ways = {name: measure(replace(base, **tuning), corpus, device, steps, Path(folder))
                for name, tuning in KINDS.items()}  # fmt: skip
    rows: list[list[Cell]] = [
        [name, rounded(way["rate"].p50), rounded(way["gflop"]), rounded(way["flops_per_second"] / matrix),
         rounded(way["gpu_gb"])] for name, way in ways.items()
    ]  # fmt: skip
    text = f"{base.turns} utterances a step; a large product reaches {matrix / 1e12:.3f} TFLOP/s."
    head = ("what learns", "utterances/s", "GFLOP an utterance", "share of the matrix rate", "GPU memory, GB")
    return Section("training", f"Training on {device.type}, {base.precision}", head, rows, text,
                   {name: way["rate"].to_json() for name, way in ways.items()}, "utterances/s", "higher")  # fmt: skip


def main(
    turns: Annotated[int, typer.Option(help="utterances in a batch; default 60 on a CPU, 512 on a GPU")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="that are timed")] = 10,
    threads: Threads = 2,
    precision: Annotated[Literal["float32", "bf16", "fp16"], typer.Option(help="half precision: on a GPU")] = "float32",
    save: Save = False,
) -> int:
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and precision != "float32":
        raise InputError(f"--precision {precision} needs a GPU; on a CPU it is many times slower than float32")
    turns = turns or (512 if device.type == "cuda" else 60)
    base = TrainConfig(epochs=1, precision=precision, turns=turns, max_turns=turns)
    report = Report("hbaf-edge: training", {"threads": threads, "steps": steps, "torch": torch.__version__})
    name = f"training_rate_{device.type}_{precision}"
    return conclude(name, report, [("training", partial(section, base, device, steps))], save)


if __name__ == "__main__":
    run(main, __doc__)
