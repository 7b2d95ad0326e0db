"""Compare a turn's latency with alternatives, all measured in one run and interleaved.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --only peers --report DIR       # two minutes

Three tables, each with one question:

- *What does the state save?* The same INT8 graphs in the same runtime on the same threads, with the state of the
  conversation and without it; without it, turns are computed in batches. Below these rows, and named for what it is,
  the same model in PyTorch: float32 and another runtime.
- *What would a turn cost with other encoders?* RoBERTa-base and wav2vec2-base, the usual ones of the field, in INT8 by
  the same runtime. Their weights are random, since latency does not depend on their values, and no fusion follows.
- *What does other software take for the same audio?* openSMILE and speech recognition do something else: the table says
  what.

All get 3 s of audio and twelve words, on the same number of threads (openSMILE uses one). A ratio's interval is that of
the median of the ratios of single rounds, so what slows all candidates cancels out.
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
from hbaf_edge.bench.turns import RATE, TEXT, Bench, conversation_with_turns, repeatable_turn, speech, total_ms
from hbaf_edge.bundle import load_bundle
from hbaf_edge.inputs import TurnInput
from hbaf_edge.ort import onnxruntime as ort

WINDOW = 32
RECEPTIVE_FIELD = 3 * (WINDOW - 1) + 1  # turns that a result can depend on, through three causal layers: 94
BATCH = 16  # turns computed together where nothing forbids it; larger and smaller batches are slower
TURN, FUSION = "a turn, with state", "fusion of turn 94, with state"
GOALS = {
    "fusion of all 94 turns again, without state": 20,
    "the last 32 turns again, without state": 15,
    "our model in PyTorch float32: the last 32 turns as one batch": 25,
    "RoBERTa + wav2vec2, random weights, INT8: one utterance, no fusion": 10,
}
OURS = "INT8, ONNX Runtime"
STATE, ENCODERS, SOFTWARE = "state", "encoders", "software"
TITLES = {
    STATE: "What does the state save?",
    ENCODERS: "What would a turn cost with the usual encoders?",
    SOFTWARE: "What does other software take for the same audio?",
}
Run = Callable[[], float]  # returns milliseconds


class Candidate(NamedTuple):
    """One way to process a turn.

    Attributes:
        table: STATE, ENCODERS or SOFTWARE.
        reference: TURN or FUSION, with which it is compared.
        run: runs it once and returns milliseconds.
        is_slow: it takes a fifth of a second or more, and so gets fewer rounds.
        what: precision and runtime, and what it computes or leaves out.
    """

    table: str
    reference: str
    run: Run
    is_slow: bool
    what: str


def stateless(runtime: HBAFRuntime) -> Run:
    """Return a function that predicts turns 1 to 32 again with the same runtime, in batches."""
    audio, pasts = speech(3.0), [conversation_with_turns(runtime, turn) for turn in range(WINDOW)]

    def predict_window() -> float:
        inputs = [
            TurnInput(audio=audio, sample_rate=RATE, text=TEXT, speaker="a", conversation=past.fork()) for past in pasts
        ]
        return time_ms(lambda: [runtime.predict_batch(inputs[i : i + BATCH]) for i in range(0, WINDOW, BATCH)])

    return predict_window


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


def usual_encoders(threads: int) -> Run:
    """Return a function that encodes one utterance with RoBERTa-base and wav2vec2-base in INT8.

    Of signed and unsigned weights, the faster on this machine is chosen.
    """
    by_type = {weight_type: _usual_encoders(weight_type, threads) for weight_type in ("int8", "uint8")}
    times = interleave(3, by_type)
    return by_type[min(times, key=lambda weight_type: min(times[weight_type]))]


def _usual_encoders(weight_type: str, threads: int) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    files = [peer_models.usual_encoders() / f"{name}-{weight_type}.onnx" for name in ("roberta", "wav2vec2")]
    text_encoder, audio_encoder = (ort.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in files)
    tokens = np.arange(5, 19, dtype=np.int64)[None]  # our twelve words are 14 RoBERTa tokens, with <s> and </s>
    audio = speech(3.0)[None]

    def encode() -> None:
        text_encoder.run(None, {"tokens": tokens})
        audio_encoder.run(None, {"samples": audio})

    return lambda: time_ms(encode)


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
    runtime = Bench([None], threads, "cpu", 1).runtime()
    fusion = internals.fusion(runtime, RECEPTIVE_FIELD)
    torch_fusion, torch_window = eager(threads)
    other = "float32, PyTorch"
    present = {
        FUSION: Candidate(STATE, FUSION, lambda: fusion()["total"], False, f"{OURS}; encoder states are given"),
        "fusion of all 94 turns again, without state": Candidate(
            STATE, FUSION, internals.fusion_of_all(runtime, RECEPTIVE_FIELD, BATCH), True,
            f"{OURS}; encoder states are given"),
        TURN: Candidate(STATE, TURN, total_ms(repeatable_turn(runtime, past=WINDOW - 1)), False, f"{OURS}; everything"),
        "the last 32 turns again, without state": Candidate(
            STATE, TURN, stateless(runtime), True, f"{OURS}; everything"),
        "our model in PyTorch float32: fusion of 94 turns in one pass": Candidate(
            STATE, FUSION, torch_fusion, True, f"{other}; encoder states are given"),
        "our model in PyTorch float32: the last 32 turns as one batch": Candidate(
            STATE, TURN, torch_window, True, f"{other}; everything"),
        "RoBERTa + wav2vec2, random weights, INT8: one utterance, no fusion": Candidate(
            ENCODERS, TURN, usual_encoders(threads), False, f"{OURS}; embeddings and convolutions in float32"),
    }  # fmt: skip
    absent = []
    for name, run, what in (
        ("openSMILE eGeMAPS and a linear classifier", opensmile_and_linear(),
         "audio alone, no context, one thread; openSMILE is free only for research"),
        ("Whisper tiny.en speech recognition (faster-whisper)", speech_recognition(threads),
         "INT8, CTranslate2; words and no emotion, so a robot without transcripts needs it in addition"),
    ):  # fmt: skip
        if run is None:
            absent.append(f"{name}: not installed")
        else:
            present[name] = Candidate(SOFTWARE, TURN, run, False, what)
    return present, absent


def sections(bench: Bench, rounds: int) -> list[Section]:
    """Measure all candidates; return one table for each question."""
    present, absent = candidates(bench.threads)
    fast = {name: candidate.run for name, candidate in present.items() if not candidate.is_slow}
    slow = {name: candidate.run for name, candidate in present.items() if candidate.is_slow}
    times = interleave(rounds, fast, bench.step)
    # The references are measured again in the slow rounds, so that both parts of a ratio come from the same rounds.
    references: dict[str, Run] = {name: partial(_median_of_five, fast[name]) for name in (FUSION, TURN)}
    slow_times = interleave(max(6, rounds // 4), {**references, **slow}, bench.step)
    texts = {
        STATE: f"3 s of speech and twelve words, {bench.threads} threads. The rows of our INT8 model differ only in "
        "the state; the rows of PyTorch differ from them in precision and runtime, too.",
        ENCODERS: "The same audio and words, precision, runtime and threads. Their time is that of the encoders alone.",
        SOFTWARE: f"Each does something else than a turn. {' '.join(f'{sentence}.' for sentence in absent)}",
    }
    result = []
    for table in TITLES:
        rows: list[Sequence[Cell]] = []
        measures: dict[str, Any] = {}
        for name, candidate in present.items():
            if candidate.table == table or (table != STATE and name == TURN):
                used = slow_times if candidate.is_slow else times
                row, measure = _compare(name, candidate, used)
                rows.append(row)
                measures[name] = measure
        result.append(_section(table, rows, measures, texts[table].strip()))
    return result


def _compare(name: str, candidate: Candidate, times: dict[str, list[float]]) -> tuple[Sequence[Cell], dict[str, Any]]:
    """Return a candidate's row and measure from interleaved times of it and its reference."""
    series, slowdown = Series.of(times[name]), ratio(times[name], times[candidate.reference])
    interval = None
    if slowdown["low"] not in (None, 1.0):
        interval = f"{slowdown['low']:.1f}–{slowdown['high']:.1f}"
    row = (name, rounded(slowdown["p50"]), interval, rounded(series.p50), rounded(series.p90), series.n,
           verdict(slowdown["p50"], "≥", GOALS.get(name)), candidate.what)  # fmt: skip
    return row, {**slowdown, "unsteady": series.unsteady_reason()}


def _section(table: str, rows: Sequence[Sequence[Cell]], measures: dict[str, Any], text: str) -> Section:
    """Return a table. Its picture has only complete turns of the same precision and runtime as ours."""
    alike = {row[0]: row[3] for row in rows if str(row[-1]).startswith(OURS) and row[0] != FUSION}
    alike = {name: ms for name, ms in alike.items() if "fusion of all" not in str(name)}
    figure = {"kind": "bars", "parts": alike, "x_title": f"ms; {OURS}",
              "title": f"{TITLES[table]} 3 s of speech and twelve words"}  # fmt: skip
    head = ("what", "times ours", "95 %", "p50, ms", "p90, ms", "rounds", "goal", "how")
    return Section(table, TITLES[table], head, rows, text, measures, "×", "higher", figure if len(alike) > 1 else None)


def _median_of_five(run: Run) -> float:
    """Return the median of five runs, a steadier figure for a fast candidate among slow ones."""
    return float(np.median([run() for _ in range(5)]))
