"""Compare a turn's latency with alternatives, all measured in one run and interleaved.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --only peers --report DIR       # ten minutes

Every candidate gets the same 3 s of audio and twelve words, on the same number of threads (openSMILE uses one). They
do not all do the same:

- the usual encoders (RoBERTa-base and wav2vec2-base, with random weights) run without any fusion, so their figures are
  a lower bound of a complete turn;
- openSMILE with a linear classifier uses only audio and no context;
- Whisper tiny.en (faster-whisper) recognizes words, not emotions: a robot without transcripts needs it in addition.

A ratio's interval is that of the median of the ratios of single rounds, so what slows all candidates cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks import internals, peer_models
from benchmarks.report import verdict
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.document import Cell, Section
from hbaf_edge.bench.series import Series, interleave, ratio, rounded, time_ms
from hbaf_edge.bench.turns import RATE, TEXT, Bench, repeatable_turn, speech, total_ms
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.ort import onnxruntime as ort

WINDOW = 32
RECEPTIVE_FIELD = 3 * (WINDOW - 1) + 1  # turns that a result can depend on, through three causal layers: 94
TURN, FUSION = "HBAF INT8, one incremental turn", "HBAF INT8, only the fusion of one turn"
GOALS = {
    "fusion only, turn 94: full pass in PyTorch": 20,
    "usual encoders, INT8, each utterance encoded once": 10,
    "usual encoders, INT8, dialogue encoded again at turn 32": 100,
    "HBAF INT8 without state, last 32 turns recomputed": 15,
    "our model in PyTorch eager, last 32 turns recomputed": 25,
}
Run = Callable[[], float]  # returns milliseconds


class Candidate(NamedTuple):
    """One way to process a turn.

    Attributes:
        reference: TURN or FUSION, with which it is compared.
        run: runs it once and returns milliseconds.
        is_slow: it takes seconds and so gets fewer rounds.
        megabytes: size of its weights; None if that is not meaningful.
        note: what it computes and leaves out.
    """

    reference: str
    run: Run
    is_slow: bool
    megabytes: float | None
    note: str


def stateless(runtime: HBAFRuntime) -> Run:
    """Return a function that predicts the last 32 turns again with the same runtime."""
    audio = speech(3.0)

    def predict_window() -> None:
        conversation = runtime.conversation()
        for n in range(WINDOW):
            runtime.predict(audio, text=TEXT, speaker="ab"[n % 2], conversation=conversation, sample_rate=RATE)

    return lambda: time_ms(predict_window)


def eager(threads: int) -> tuple[Run, Run]:
    """Return two functions that run our model in PyTorch.

    The first runs the fusion of 94 turns in one causal pass, on encoder states that are computed in advance. The second
    runs the last 32 turns from audio and text.
    """
    import torch

    from training.config import TrainConfig
    from training.corpora.records import Dialogue, Utterance
    from training.feature_provider import FeatureProvider
    from training.from_bundle import restore
    from training.training_module import TrainingModule

    torch.set_num_threads(threads)
    module = TrainingModule(*restore(load_bundle(None))).eval()
    clip = peer_models.cached("clip", lambda f: soundfile.write(f / "clip.wav", speech(3.0), RATE)) / "clip.wav"
    turns = tuple(Utterance(TEXT, 0, "ab"[n % 2], clip) for n in range(RECEPTIVE_FIELD))
    with torch.inference_mode():
        provider = FeatureProvider(module, TrainConfig(), cached=False)
        features = provider.turns(Dialogue("d", "test", turns), "audio+text")
        batch = module.batch([features])

    def without_gradients(work: Callable[[], object]) -> float:
        with torch.inference_mode():
            return time_ms(work)

    return (
        lambda: without_gradients(lambda: module.hbaf(batch)),
        lambda: without_gradients(lambda: module.output([features[-WINDOW:]])),
    )


def usual(threads: int) -> tuple[Run, Run, float]:
    """Return RoBERTa-base and wav2vec2-base in INT8: one utterance, 32 utterances, and MB of their weights.

    Of signed and unsigned weights, the faster on this machine is chosen.
    """
    candidates = {weight_type: usual_encoders(weight_type, threads) for weight_type in ("int8", "uint8")}
    times = interleave(3, {weight_type: one for weight_type, (one, _, _) in candidates.items()})
    return candidates[min(times, key=lambda weight_type: min(times[weight_type]))]


def usual_encoders(weight_type: str, threads: int) -> tuple[Run, Run, float]:
    """Return what `usual` returns, with weights of this type ("int8" or "uint8").

    The texts of a dialogue are one batch; audio clips run one after the other, which is faster on a CPU.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    files = [peer_models.usual_encoders() / f"{name}-{weight_type}.onnx" for name in ("roberta", "wav2vec2")]
    text_encoder, audio_encoder = (ort.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in files)
    tokens = np.arange(5, 19, dtype=np.int64)[None]  # our twelve words are 14 RoBERTa tokens, with <s> and </s>
    audio = speech(3.0)[None]

    def encode(turns: int) -> None:
        text_encoder.run(None, {"tokens": np.repeat(tokens, turns, 0)})
        for _ in range(turns):
            audio_encoder.run(None, {"samples": audio})

    megabytes = sum(f.stat().st_size for f in files) / 1e6
    return lambda: time_ms(lambda: encode(1)), lambda: time_ms(lambda: encode(WINDOW)), megabytes


def opensmile_and_linear() -> Run | None:
    """Return eGeMAPS functionals with a linear classifier; None if opensmile (research licence) is not installed."""
    try:
        import opensmile
    except ImportError:
        return None
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    audio, weights = speech(3.0), np.zeros((88, 7), np.float32)

    def classify() -> NDArray[Any]:
        logits: NDArray[Any] = smile.process_signal(audio, RATE).to_numpy(np.float32) @ weights
        return logits

    return lambda: time_ms(classify)


def speech_recognition(threads: int) -> Run | None:
    """Return speech recognition with Whisper tiny.en; None if faster-whisper is not installed."""
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        return None
    model = WhisperModel(str(peer_models.whisper()), device="cpu", compute_type="int8", cpu_threads=threads)
    audio = speech(3.0)
    return lambda: time_ms(lambda: list(model.transcribe(audio, language="en", beam_size=1)[0]))


def candidates(threads: int) -> tuple[dict[str, Candidate], list[str]]:
    """Return the candidates that can run here, and a sentence for each that cannot."""
    bench = Bench([None, peer_models.float32_bundle()], threads, "cpu", 1)
    int8, float32 = bench.runtime(), bench.runtime(bundle=1)
    fusion = internals.fusion(int8, RECEPTIVE_FIELD)
    torch_fusion, torch_window = eager(threads)
    one, window, encoders_mb = usual(threads)
    int8_mb, float32_mb = (sum(len(load_bundle(path).graph(g)) for g in GRAPHS) / 1e6 for path in bench.bundles)
    complete = "everything, with features and copies"
    present = {
        FUSION: Candidate(FUSION, lambda: fusion()["total"], False, None, "encoder states are computed in advance"),
        "fusion only, turn 94: full pass in PyTorch": Candidate(
            FUSION, torch_fusion, False, None, "one causal pass; encoder states are computed in advance"),
        TURN: Candidate(TURN, total_ms(repeatable_turn(int8, past=WINDOW - 1)), False, int8_mb, complete),
        "HBAF INT8 without state, last 32 turns recomputed": Candidate(
            TURN, stateless(int8), True, int8_mb, complete),
        "HBAF float32 without state, last 32 turns recomputed": Candidate(
            TURN, stateless(float32), True, float32_mb, complete),
        "our model in PyTorch eager, last 32 turns recomputed": Candidate(
            TURN, torch_window, True, float32_mb, "everything, as one batch"),
        "usual encoders, INT8, each utterance encoded once": Candidate(TURN, one, False, encoders_mb, "no fusion"),
        "usual encoders, INT8, dialogue encoded again at turn 32": Candidate(
            TURN, window, True, encoders_mb, "no fusion"),
    }  # fmt: skip
    absent = []
    for name, run, note in (
        ("openSMILE eGeMAPS and a linear classifier", opensmile_and_linear(),
         "only audio, no context, one thread; openSMILE is free only for research"),
        ("Whisper tiny.en speech recognition (faster-whisper INT8)", speech_recognition(threads),
         "only words, no emotion"),
    ):  # fmt: skip
        if run is None:
            absent.append(f"{name}: not installed")
        else:
            present[name] = Candidate(TURN, run, False, None, note)
    return present, absent


def section(bench: Bench, rounds: int) -> Section:
    """Measure all candidates; return a table of their times and of the ratios to ours."""
    present, absent = candidates(bench.threads)
    fast = {name: candidate.run for name, candidate in present.items() if not candidate.is_slow}
    slow = {name: candidate.run for name, candidate in present.items() if candidate.is_slow}
    fast_times = interleave(rounds, fast, bench.step)
    # The references are measured again in the slow rounds, so that both parts of a ratio come from the same rounds.
    references: dict[str, Run] = {name: partial(_median_of_five, fast[name]) for name in (FUSION, TURN)}
    slow_times = interleave(max(6, rounds // 4), {**references, **slow}, bench.step)
    rows: list[Sequence[Cell]] = []
    measures: dict[str, Any] = {}
    for name, candidate in present.items():
        times = slow_times if candidate.is_slow else fast_times
        series, slowdown = Series.of(times[name]), ratio(times[name], times[candidate.reference])
        measures[name] = {**slowdown, "unsteady": series.unsteady_reason()}
        interval = None
        if slowdown["low"] not in (None, 1.0):
            interval = f"{slowdown['low']:.1f}–{slowdown['high']:.1f}"
        rows.append((name, rounded(slowdown["p50"]), interval, rounded(series.p50), rounded(series.p90), series.n,
                     verdict(slowdown["p50"], "≥", GOALS.get(name)), rounded(candidate.megabytes),
                     candidate.note))  # fmt: skip
    text = (
        f"Ratios of medians, {bench.threads} threads, candidates interleaved. The first two rows compare only the "
        "fusion, the others a complete turn. The usual encoders, RoBERTa-base and wav2vec2-base with random weights, "
        f"run without any fusion. {' '.join(sentence + '.' for sentence in absent)}"
    )
    bars = {row[0]: row[3] for row in rows if present[str(row[0])].reference == TURN}
    figure = {"kind": "bars", "parts": bars, "x_title": "ms, logarithmic scale",
              "title": "3 s of speech and twelve words, at turn 32"}  # fmt: skip
    head = ("what", "times ours", "95 %", "p50, ms", "p90, ms", "rounds", "goal", "weights, MB", "what it does")
    title = "A turn compared with alternatives"
    return Section("peers", title, head, rows, text.strip(), measures, "×", "higher", figure)


def _median_of_five(run: Run) -> float:
    """Return the median of five runs, a steadier figure for a fast candidate among slow ones."""
    return float(np.median([run() for _ in range(5)]))
