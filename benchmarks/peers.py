"""How many times faster is a turn than what people would use instead? All sides in one run, interleaved.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.whole --only peers --report DIR       # ten minutes

Every side takes the same 3 s and twelve words on as many threads. What differs, as the table says:

- the usual encoders (RoBERTa-base and wav2vec2-base, random weights: time does not depend on values) stop where fusion
  would begin, so what is measured of them is less than a whole turn;
- openSMILE and a linear classifier take audio alone, and know nothing of the conversation;
- Whisper tiny.en by faster-whisper tells which words were spoken, not how: a robot without text pays it besides.

A ratio's interval is that of the median of single rounds' ratios: what slows all sides cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks import insides, peer_models
from benchmarks.report import verdict
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.document import Cell, Section
from hbaf_edge.bench.series import Series, in_turn, ratio, rounded, timed
from hbaf_edge.bench.turns import RATE, TEXT, Bench, speech, total, turn_of
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.ort import onnxruntime as ort

REACH, WINDOW = 94, 32  # turns that a result can depend on, 3 (W - 1) + 1, and the window W
OURS, STEP = "HBAF INT8, one incremental turn", "HBAF INT8, fusion of one turn alone"
GOALS = {
    "fusion alone, turn 94: the whole pass again, PyTorch": 20,
    "usual encoders, INT8, each utterance encoded once": 10,
    "usual encoders, INT8, dialogue encoded again at turn 32": 100,
    "HBAF INT8 without state, last 32 turns again": 15,
    "our model in PyTorch eager, last 32 turns again": 25,
}
Run = Callable[[], float]  # milliseconds


class Side(NamedTuple):
    """What takes part.

    Attributes:
        against: OURS or STEP.
        run: returns milliseconds.
        is_slow: it takes seconds, and so fewer rounds.
        megabytes: of its weights; None where that makes no sense.
        note: what it does, and what it leaves out.
    """

    against: str
    run: Run
    is_slow: bool
    megabytes: float | None
    note: str


def stateless(runtime: HBAFRuntime) -> Run:
    """The last 32 turns again, by the same runtime."""
    audio = speech(3.0)

    def again() -> None:
        chat = runtime.conversation()
        for n in range(WINDOW):
            runtime.predict(audio, text=TEXT, speaker="ab"[n % 2], conversation=chat, sample_rate=RATE)

    return lambda: timed(again)


def eager(threads: int) -> tuple[Run, Run]:
    """Our model in PyTorch: fusion of 94 turns in one causal pass on encoder states; the last 32 turns from audio."""
    import torch

    from training.config import TrainConfig
    from training.corpora.records import Dialogue, Utterance
    from training.from_bundle import restore
    from training.learner import Learner
    from training.material import Material

    torch.set_num_threads(threads)
    learner = Learner(*restore(load_bundle(None))).eval()
    clip = peer_models.cached("clip", lambda f: soundfile.write(f / "clip.wav", speech(3.0), RATE)) / "clip.wav"
    turns = tuple(Utterance(TEXT, 0, "ab"[n % 2], clip) for n in range(REACH))
    with torch.inference_mode():
        shown = Material(learner, TrainConfig(), cached=False).shown(Dialogue("d", "test", turns), "audio+text")
        batch = learner.batch([shown])

    def without_gradients(work: Callable[[], object]) -> float:
        with torch.inference_mode():
            return timed(work)

    return (
        lambda: without_gradients(lambda: learner.hbaf(batch)),
        lambda: without_gradients(lambda: learner.output([shown[-WINDOW:]])),
    )


def usual(threads: int) -> tuple[Run, Run, float]:
    """RoBERTa-base and wav2vec2-base in INT8 by ONNX Runtime: an utterance, 32 utterances, and MB of weights.

    Of signed and unsigned weights those that are faster here.
    """
    candidates = {signs: encoders(signs, threads) for signs in ("int8", "uint8")}
    trial = in_turn(3, {signs: one for signs, (one, _, _) in candidates.items()})
    return candidates[min(trial, key=lambda signs: min(trial[signs]))]


def encoders(signs: str, threads: int) -> tuple[Run, Run, float]:
    """As `usual`, with weights of these signs.

    Texts of a dialogue go in as one batch, audio one clip after the other, which is the faster way on a CPU.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    files = [peer_models.usual_encoders() / f"{name}-{signs}.onnx" for name in ("roberta", "wav2vec2")]
    text_encoder, audio_encoder = (ort.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in files)
    tokens = np.arange(5, 19, dtype=np.int64)[None]  # twelve words of ours are 14 of RoBERTa's pieces, with both ends
    audio = speech(3.0)[None]

    def encode(turns: int) -> None:
        text_encoder.run(None, {"tokens": np.repeat(tokens, turns, 0)})
        for _ in range(turns):
            audio_encoder.run(None, {"samples": audio})

    size = sum(f.stat().st_size for f in files) / 1e6
    return lambda: timed(lambda: encode(1)), lambda: timed(lambda: encode(WINDOW)), size


def opensmile_and_linear() -> Run | None:
    """eGeMAPS functionals and a linear classifier; None where opensmile is not installed (research licence)."""
    try:
        import opensmile
    except ImportError:
        return None
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    audio, weights = speech(3.0), np.zeros((88, 7), np.float32)

    def once() -> NDArray[Any]:
        logits: NDArray[Any] = smile.process_signal(audio, RATE).to_numpy(np.float32) @ weights
        return logits

    return lambda: timed(once)


def recognition(threads: int) -> Run | None:
    """Speech recognition with Whisper tiny.en; None where faster-whisper is not installed."""
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        return None
    model = WhisperModel(str(peer_models.whisper()), device="cpu", compute_type="int8", cpu_threads=threads)
    audio = speech(3.0)
    return lambda: timed(lambda: list(model.transcribe(audio, language="en", beam_size=1)[0]))


def sides(threads: int) -> tuple[dict[str, Side], list[str]]:
    """All that can take part here, and what cannot."""
    bench = Bench([None, peer_models.float32_bundle()], threads, "cpu", 1)
    int8, float32 = bench.runtime(), bench.runtime(bundle=1)
    fused = insides.fusion(int8, REACH)
    torch_pass, torch_again = eager(threads)
    once, dialogue, encoders_mb = usual(threads)
    small, full = (sum(len(load_bundle(path).graph(g)) for g in GRAPHS) / 1e6 for path in bench.bundles)
    whole = "everything, copies and features included"
    taking_part = {
        STEP: Side(STEP, lambda: fused()["total"], False, None, "features cached on both sides"),
        "fusion alone, turn 94: the whole pass again, PyTorch": Side(STEP, torch_pass, False, None, "one causal pass"),
        OURS: Side(OURS, total(turn_of(int8, past=WINDOW)), False, small, whole),
        "HBAF INT8 without state, last 32 turns again": Side(OURS, stateless(int8), True, small, whole),
        "HBAF float32 without state, last 32 turns again": Side(OURS, stateless(float32), True, full, whole),
        "our model in PyTorch eager, last 32 turns again": Side(OURS, torch_again, True, full, "all, as one batch"),
        "usual encoders, INT8, each utterance encoded once": Side(OURS, once, False, encoders_mb, "no fusion"),
        "usual encoders, INT8, dialogue encoded again at turn 32": Side(OURS, dialogue, True, encoders_mb, "no fusion"),
    }
    absent = []
    for name, optional, note in (
        ("openSMILE eGeMAPS and a linear classifier", opensmile_and_linear(), "audio alone, no context, one thread; "
         "openSMILE is free for research only"),
        ("Whisper tiny.en speech recognition (faster-whisper INT8)", recognition(threads), "words only, no emotion"),
    ):  # fmt: skip
        if optional is None:
            absent.append(f"{name}: not installed")
        else:
            taking_part[name] = Side(OURS, optional, False, None, note)
    return taking_part, absent


def section(bench: Bench, rounds: int) -> Section:
    """The table, the ratios that matter most first."""
    taking_part, absent = sides(bench.threads)
    runs = {name: side.run for name, side in taking_part.items()}
    quick = in_turn(rounds, {name: runs[name] for name, side in taking_part.items() if not side.is_slow}, bench.step)
    # With the slow ones our own turn is measured again, so that each ratio's sides stand in the same rounds.
    references: dict[str, Run] = {name: partial(_median_of_five, runs[name]) for name in (STEP, OURS)}
    slow = {name: runs[name] for name, side in taking_part.items() if side.is_slow}
    late = in_turn(max(6, rounds // 4), {**references, **slow}, bench.step)
    rows: list[Sequence[Cell]] = []
    measures: dict[str, Any] = {}
    for name, side in taking_part.items():
        times = late if side.is_slow else quick
        series, times_ours = Series.of(times[name]), ratio(times[name], times[side.against])
        measures[name] = {**times_ours, "unsteady": series.unsteady()}
        interval = None
        if times_ours["low"] not in (None, 1.0):
            interval = f"{times_ours['low']:.1f}–{times_ours['high']:.1f}"
        rows.append((name, rounded(times_ours["p50"]), interval, rounded(series.p50), rounded(series.p90), series.n,
                     verdict(times_ours["p50"], "≥", GOALS.get(name)), rounded(side.megabytes), side.note))  # fmt: skip
    text = (
        f"Ratios of medians of interleaved sides, {bench.threads} threads: above the first whole turn, fusion alone; "
        "below, a whole turn. The usual encoders, RoBERTa-base and wav2vec2-base with random weights, stop where "
        f"fusion would begin. {' '.join(a + '.' for a in absent)}"
    )
    bars = {row[0]: row[3] for row in rows if taking_part[str(row[0])].against == OURS}
    figure = {"kind": "bars", "parts": bars, "x_title": "ms, a logarithmic scale",
              "title": "3 s of speech and twelve words, at turn 32"}  # fmt: skip
    head = ("what", "times ours", "95 %", "p50, ms", "p90, ms", "rounds", "goal", "weights, MB", "what it does")
    title = "A turn against what people would use instead"
    return Section("peers", title, head, rows, text.strip(), measures, "×", "higher", figure)


def _median_of_five(once: Run) -> float:
    """Beside a side that takes seconds, a steadier figure of one that takes milliseconds."""
    return float(np.median([once() for _ in range(5)]))
