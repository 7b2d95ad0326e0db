"""How many times faster is a turn than what people would use instead? All sides in one run, taking turns.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.peers --save       # ten minutes; at first, peers are made

Every side hears the same 3 s and twelve words on as many threads. What differs, and is said in the table:

- the usual encoders (RoBERTa-base and wav2vec2-base, random weights: time does not depend on values) stop where fusion
  would begin, so what is measured of them is less than a whole turn;
- openSMILE and a linear classifier hear sound alone, and know nothing of the conversation;
- Whisper tiny.en by faster-whisper says which words were spoken, not how: a robot without words pays it besides.

A ratio's interval is that of the median of single rounds' ratios: what slows all sides cancels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import peer_models
from benchmarks.report import RESULTS
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench import page
from hbaf_edge.bench.command import finish, measure
from hbaf_edge.bench.document import Report, Section
from hbaf_edge.bench.series import Series, in_turn, ratio, rounded, timed
from hbaf_edge.bench.speech import RATE, WORDS, sound
from hbaf_edge.bench.turns import talked, total, turn_of
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.features import extract
from hbaf_edge.judge import Clock

REACH, WINDOW = 94, 32  # turns that a result can depend on, 3 (W - 1) + 1, and the window W
OURS, STEP = "HBAF INT8, one incremental turn", "HBAF INT8, fusion of one turn alone"
GOALS = {
    "fusion alone, turn 94: the whole pass again, PyTorch": 20,
    "fusion alone, turn 94: all turns again, by ONNX Runtime": 20,
    "usual encoders, INT8, each utterance encoded once": 10,
    "usual encoders, INT8, dialogue encoded again at turn 32": 100,
    "our model in PyTorch eager, last 32 turns again": 25,
}


class Side(NamedTuple):
    """What takes part.

    Attributes:
        against: OURS or STEP.
        run: returns milliseconds.
        slow: it takes seconds, and so fewer rounds.
        megabytes: of its weights; None where that makes no sense.
        note: what it leaves out.
    """

    against: str
    run: Callable[[], float]
    slow: bool
    megabytes: float | None
    note: str


def ours(runtime: HBAFRuntime) -> Callable[[], float]:
    """A whole turn as number 33."""
    return total(turn_of(runtime, past=WINDOW))


def stateless(runtime: HBAFRuntime) -> Callable[[], float]:
    """The last 32 turns again, by the same runtime."""
    voice = sound(3.0)

    def again() -> None:
        chat = runtime.conversation()
        for n in range(WINDOW):
            runtime.predict(voice, text=WORDS, speaker="ab"[n % 2], conversation=chat, sample_rate=RATE)

    return lambda: timed(again)


def fusion(runtime: HBAFRuntime) -> tuple[Callable[[], float], Callable[[], float]]:
    """Encoder states at hand: one turn as number 94, and all 94 of them by the same graphs."""
    judge, chat = runtime._ready(), talked(runtime, REACH - 1)
    encoded = judge.encode(extract(sound(3.0), RATE, WORDS, judge.tokeniser), Clock())

    def step() -> None:
        judge.estimate(encoded, chat, "a", Clock(), commit=False)

    def again() -> None:
        new = runtime.conversation()
        for n in range(REACH):
            judge.estimate(encoded, new, "ab"[n % 2], Clock())

    return lambda: timed(step), lambda: timed(again)


def eager(threads: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Our model in PyTorch: fusion of 94 turns in one causal pass on encoder states; the last 32 turns from sound."""
    import torch

    from training.config import TrainConfig
    from training.corpora.records import Dialogue, Utterance
    from training.from_bundle import restore
    from training.learner import Learner
    from training.material import Material

    torch.set_num_threads(threads)
    learner = Learner(*restore(load_bundle(None))).eval()
    clip = peer_models.kept("clip", lambda f: soundfile.write(f / "clip.wav", sound(3.0), RATE)) / "clip.wav"
    turns = tuple(Utterance(WORDS, 0, "ab"[n % 2], clip) for n in range(REACH))
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


def usual(precision: str, threads: int) -> tuple[Callable[[], float], Callable[[], float], float]:
    """RoBERTa-base and wav2vec2-base by ONNX Runtime: an utterance, 32 utterances, and MB of weights.

    In INT8, of signed and unsigned weights those that are faster here. Texts of a dialogue go in as one batch, sounds
    one after the other, which is the faster way on a CPU.
    """
    made = {s: _usual(s, threads) for s in ({"float32": [""], "int8": ["-int8", "-uint8"]}[precision])}
    trial = in_turn(3, {suffix: one for suffix, (one, _, _) in made.items()})
    return made[min(trial, key=lambda suffix: min(trial[suffix]))]


def _usual(suffix: str, threads: int) -> tuple[Callable[[], float], Callable[[], float], float]:
    from hbaf_edge.ort import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    files = [peer_models.usual_encoders() / f"{name}{suffix}.onnx" for name in ("roberta", "wav2vec2")]
    text, audio = (ort.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in files)
    tokens = np.arange(5, 19, dtype=np.int64)[None]  # twelve words of ours are 14 of RoBERTa's pieces, with both ends
    voice = sound(3.0)[None]

    def encode(turns: int) -> None:
        text.run(None, {"tokens": np.repeat(tokens, turns, 0)})
        for _ in range(turns):
            audio.run(None, {"samples": voice})

    size = sum(f.stat().st_size for f in files) / 1e6
    return lambda: timed(lambda: encode(1)), lambda: timed(lambda: encode(WINDOW)), size


def opensmile_and_linear() -> Callable[[], float] | None:
    """eGeMAPS functionals and a linear classifier; None where opensmile is not installed (research licence)."""
    try:
        import opensmile
    except ImportError:
        return None
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    voice, weights = sound(3.0), np.zeros((88, 7), np.float32)

    def once() -> NDArray[Any]:
        found: NDArray[Any] = smile.process_signal(voice, RATE).to_numpy(np.float32) @ weights
        return found

    return lambda: timed(once)


def recognition(threads: int) -> Callable[[], float] | None:
    """Speech recognition with Whisper tiny.en; None where faster-whisper is not installed."""
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        return None
    model = WhisperModel(str(peer_models.whisper()), device="cpu", compute_type="int8", cpu_threads=threads)
    voice = sound(3.0)

    def once() -> None:
        list(model.transcribe(voice, language="en", beam_size=1)[0])

    return lambda: timed(once)


def sides(threads: int) -> tuple[dict[str, Side], list[str]]:
    """All that can take part here, and what cannot."""
    runtime = HBAFRuntime(threads=threads)
    runtime.warmup()
    whole = HBAFRuntime(peer_models.float32_bundle(), threads=threads)
    whole.warmup()
    step, again = fusion(runtime)
    passed, recomputed = eager(threads)
    mine, full = (sum(len(load_bundle(p).graph(g)) for g in GRAPHS) / 1e6 for p in (None, peer_models.float32_bundle()))
    found = {
        STEP: Side(STEP, step, False, None, "features cached on both sides"),
        "fusion alone, turn 94: the whole pass again, PyTorch": Side(STEP, passed, False, None, "one causal pass"),
        "fusion alone, turn 94: all turns again, by ONNX Runtime": Side(STEP, again, False, None, "the same graphs"),
        OURS: Side(OURS, ours(runtime), False, mine, "everything, copies and features included"),
        "HBAF float32, one incremental turn": Side(OURS, ours(whole), False, full, "everything"),
        "HBAF float32 without state, last 32 turns again": Side(OURS, stateless(whole), True, full, "everything"),
        "our model in PyTorch eager, last 32 turns again": Side(
            OURS, recomputed, True, full, "all of it, as one batch"
        ),
    }
    for precision, shown in (("int8", "INT8"), ("float32", "float32")):
        one, dialogue, size = usual(precision, threads)
        found[f"usual encoders, {shown}, each utterance encoded once"] = Side(OURS, one, False, size, "no fusion")
        found[f"usual encoders, {shown}, dialogue encoded again at turn 32"] = Side(
            OURS, dialogue, True, size, "no fusion"
        )
    absent = []
    for name, run, note in (
        ("openSMILE eGeMAPS and a linear classifier", opensmile_and_linear(), "sound alone, no context, one thread; "
         "openSMILE is free for research only"),
        ("Whisper tiny.en speech recognition (faster-whisper INT8)", recognition(threads), "words only, no emotion"),
    ):  # fmt: skip
        if run is None:
            absent.append(f"{name}: not installed")
        else:
            found[name] = Side(OURS, run, False, None, note)
    return found, absent


def section(threads: int, rounds: int, step: Callable[[], object] = lambda: None) -> Section:
    """The table, the ratios that matter most first."""
    taking_part, absent = sides(threads)
    quick = {name: side for name, side in taking_part.items() if not side.slow}
    found = in_turn(rounds, {name: side.run for name, side in quick.items()}, step)
    reference = {name: quick[name].run for name in (STEP, OURS)}
    slow = {name: side.run for name, side in taking_part.items() if side.slow}
    # With the slow ones our own turn is measured again, so that each ratio's sides stand in the same rounds.
    late = in_turn(max(6, rounds // 4), {**{n: partial(_several, run) for n, run in reference.items()}, **slow}, step)
    rows: list[Sequence[Any]] = []
    measures: dict[str, Any] = {}
    for name, side in taking_part.items():
        own, base = (late[name], late[side.against]) if side.slow else (found[name], found[side.against])
        series, times = Series.of(own), ratio(own, base)
        measures[name] = {**times, "unsteady": series.unsteady()}
        interval = None if times["low"] in (None, 1.0) else f"{times['low']:.1f}–{times['high']:.1f}"
        goal = GOALS.get(name)
        verdict = None if goal is None else f"≥ {goal}: {'yes' if times['p50'] >= goal else 'NO'}"
        rows.append((name, rounded(times["p50"]), interval, rounded(series.p50), rounded(series.p90), series.n,
                     verdict, rounded(side.megabytes), side.note))  # fmt: skip
    text = (
        f"Ratios of medians of sides that took turns, {threads} threads: above the first whole turn, fusion alone; "
        "below, a whole turn. The usual encoders, RoBERTa-base and wav2vec2-base with random weights, stop where "
        f"fusion would begin. {' '.join(a + '.' for a in absent)}"
    )
    bars = {row[0]: row[3] for row in rows if taking_part[row[0]].against == OURS}
    head = ("what", "times ours", "95 %", "p50, ms", "p90, ms", "rounds", "goal", "weights, MB", "what it does")
    title = "A turn against what people would use instead"
    return Section("peers", title, head, rows, text.strip(), measures, "×", "higher",
                   {"kind": "bars", "parts": bars, "x_title": "ms, a logarithmic scale", "log": True,
                    "title": "3 s of speech and twelve words, at turn 32"})  # fmt: skip


def _several(run: Callable[[], float]) -> float:
    """Beside a side that takes seconds, the median of a few."""
    return float(np.median([run() for _ in range(5)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    made = Report("hbaf-edge beside its peers", {"threads": given.threads, "rounds": given.rounds})
    folder = RESULTS / "peers" if given.save else None
    if folder is not None:
        page.check(folder)
    measure(made, [("peers", lambda: section(given.threads, given.rounds))], None, Console(), folder)
    finish(made, folder, Console())


if __name__ == "__main__":
    main()
