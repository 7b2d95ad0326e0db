"""Compare accuracy with cost: precisions, modalities and context of the default model, scored and timed.

    export HBAF_DATA=...                                   # the corpora of the default recipe
    python -m benchmarks.tradeoff --bundle float32 --bundle float16 --save      # bundles besides the built-in one

The model is scored on its own test conversations: MELD's texts, each with a clip of the same label. Latency and memory
are measured on this machine with 3 s of audio and twelve words. `--save` also updates the choices from which
`hbaf-edge advise` selects (hbaf_edge/bench/choices.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import RESULTS, AsJson, Repeats, Threads, measure_and_report, run
from export.conversations import conversations
from export.score import predict_labelled_turns
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.advise import CHOICES
from hbaf_edge.bench.document import Cell, Report, Section, measures_of
from hbaf_edge.bench.series import Series, interleave, rounded, single_value
from hbaf_edge.bench.turns import TEXT, Bench, measure_fresh_process, repeatable_turn, total_ms
from hbaf_edge.bundle import load_bundle
from hbaf_edge.machine import machine_info
from training.config import Use
from training.corpora.records import UNLABELLED, Dialogue, Utterance
from training.evaluate import EvaluationSet
from training.metrics import scores

# What a turn has, by its name in choices.json: modalities, seconds of audio, and whether there is text.
INPUTS: dict[str, tuple[Use, float | None, bool]] = {
    "audio and text": ("audio+text", 3.0, True),
    "text alone": ("text", None, True),
    "audio alone": ("audio", 3.0, False),
}
COLUMNS = ("f1", "p50_ms", "p90_ms", "megabytes", "peak_mb")
Choice = dict[str, Any]


def weighted_f1(bundle: Path | None, dialogues: Sequence[Dialogue], use: Use, context: bool, threads: int) -> float:
    """Return weighted F1 on the turns that have both modalities.

    Args:
        bundle: bundle to score; None for the built-in one.
        dialogues: test conversations.
        use: modalities that the model gets.
        context: False to predict every turn without earlier turns.
        threads: CPU threads per operator.
    """
    runtime = HBAFRuntime(bundle, threads=threads)
    if not context:
        dialogues = [replace(d, turns=(u,)) for d in dialogues for u in d.turns if has_both(u)]
    # A turn with one modality stays as context if the model gets that modality, but it is not scored.
    scored = [replace(d, turns=tuple(without_label_unless_both(u) for u in d.turns)) for d in dialogues]
    title = f"{runtime.manifest['precision']}, {use}"
    predictions, labels = predict_labelled_turns(runtime, EvaluationSet(use, scored), title)
    logits = torch.tensor([list(p.probabilities.values()) for p in predictions]).log()
    return float(scores(logits, torch.tensor(labels), runtime.labels)["weighted_f1"])


def has_both(utterance: Utterance) -> bool:
    """Return whether the utterance has text and audio."""
    return bool(utterance.text and utterance.audio)


def without_label_unless_both(utterance: Utterance) -> Utterance:
    """Return the utterance, without its label if a modality is missing."""
    return utterance if has_both(utterance) else replace(utterance, label=UNLABELLED)


def scored_choices(
    bundles: list[Path | None], dialogues: Sequence[Dialogue], threads: int
) -> tuple[list[Choice], dict[str, Callable[[], float]]]:
    """Score every bundle, and the built-in one also with one modality; return choices, and their turns to be timed."""
    choices: list[Choice] = []
    turns: dict[str, Callable[[], float]] = {}
    for path in bundles:
        bundle = load_bundle(path)
        precision = bundle.manifest["precision"]
        about = {"bundle": "built-in" if path is None else precision, "precision": precision,
                 "megabytes": rounded(bundle.megabytes)}  # fmt: skip
        for inputs, (use, seconds, with_text) in INPUTS.items():
            if path is not None and inputs != "audio and text":
                continue
            f1 = rounded(weighted_f1(path, dialogues, use, True, threads))
            for n in sorted({1, threads}):
                name = f"{precision}, {inputs}, {n} thread{'s' * (n > 1)}"
                text = TEXT if with_text else None
                turns[name] = total_ms(repeatable_turn(HBAFRuntime(path, threads=n), seconds, text))
                peak = measure_fresh_process(Bench([path], n, "cpu", 6), seconds, with_text).peak_mb
                choices.append({"name": name, **about, "given": inputs, "threads": n, "f1": f1, "peak_mb": peak})
    return choices, turns


def default_model(
    bundles: list[Path | None], threads: int, repeats: int, turn_count: int
) -> tuple[Section, list[Choice]]:
    """Score and time all choices; return their table and the choices."""
    dialogues = conversations(load_bundle(None).manifest, "test", turn_count)
    choices, turns = scored_choices(bundles, dialogues, threads)
    without_context = weighted_f1(None, dialogues, "audio+text", False, threads)
    times = {name: Series.of(values) for name, values in interleave(repeats, turns).items()}
    for choice in choices:
        series = times[choice["name"]]
        choice.update(p50_ms=rounded(series.p50), p90_ms=rounded(series.p90))
    front = pareto(choices)
    rows: list[Sequence[Cell]] = [
        [c["name"], *(c[k] for k in COLUMNS), "yes" if c["name"] in front else ""] for c in choices
    ]
    scored = sum(has_both(u) for d in dialogues for u in d.turns)
    text = (
        f"Weighted F1 on {scored} turns with both modalities of the default model's own test conversations: MELD's "
        f"texts, each with a clip of the same label. Without earlier turns, audio and text reach "
        f"{without_context:.3f}. A choice is on the front if no other is better in latency, size and F1 together."
    )
    head = ("what runs", "weighted F1", "p50, ms", "p90, ms", "bundle, MB", "peak memory, MB", "on the front")
    measures = measures_of(times) | {f"{c['name']}, F1": {**single_value(c["f1"]), "better": "higher"} for c in choices}
    return Section("tradeoff", "Accuracy against cost: the default model", head, rows, text, measures,
                   figure=scatter(choices, sorted(front, key=lambda name: times[name].p50))), choices  # fmt: skip


def scatter(choices: Sequence[Choice], front: list[str]) -> dict[str, Any]:
    """Return the figure of F1 against latency."""
    points = [
        {"name": c["name"], "x": c["p50_ms"], "y": c["f1"], "label": str(c["threads"]),
         "group": f"{c['precision']}, {c['given']}"} for c in choices
    ]  # fmt: skip
    return {"kind": "scatter", "points": points, "x_title": "a turn, ms", "y_title": "weighted F1", "front": front,
            "title": "Accuracy against latency; numbers are CPU threads"}  # fmt: skip


def pareto(choices: Sequence[Choice]) -> list[str]:
    """Return the names of the choices that no other beats in latency, size and F1 together.

    >>> three = (("a", 1, 1), ("b", 2, 2), ("c", 3, 1))
    >>> pareto([{"name": n, "p50_ms": t, "megabytes": 1, "f1": f} for n, t, f in three])
    ['a', 'b']
    """

    def beats(a: Choice, b: Choice) -> bool:
        not_worse = (a["p50_ms"] <= b["p50_ms"], a["megabytes"] <= b["megabytes"], a["f1"] >= b["f1"])
        not_better = (a["p50_ms"] >= b["p50_ms"], a["megabytes"] >= b["megabytes"], a["f1"] <= b["f1"])
        return all(not_worse) and not all(not_better)

    return [c["name"] for c in choices if not any(beats(other, c) for other in choices)]


def main(
    bundle: Annotated[list[Path] | None, typer.Option("--bundle", help="besides the built-in one")] = None,
    note: Annotated[str, typer.Option(help="a sentence about these bundles, for the report")] = "",
    threads: Threads = 2,
    repeats: Repeats = 51,
    turns: Annotated[int, typer.Option(help="turns of the test conversations")] = 1500,
    save: Annotated[
        bool, typer.Option("--save", help="write benchmarks/results/tradeoff and the choices of hbaf-edge advise")
    ] = False,
    as_json: AsJson = False,
) -> int:
    report = Report("hbaf-edge: accuracy against cost", {"threads": threads, "turns": turns})
    choices: list[Choice] = []

    def section() -> Section:
        result, scored = default_model([None, *(bundle or [])], threads, repeats, turns)
        choices.extend(scored)
        result.text += f" {note}" if note else ""
        return result

    folder = RESULTS / "tradeoff" if save else None
    code = measure_and_report("tradeoff", report, [("the default model", section)], folder=folder, as_json=as_json)
    if save and choices:
        score = report.sections[0].text.removesuffix(note).rstrip()
        stored = {"format": 1, "machine": machine_info(), "score": score, "choices": choices}
        CHOICES.write_text(json.dumps(stored, indent=1) + "\n")
    return code


if __name__ == "__main__":
    run(main, __doc__)
