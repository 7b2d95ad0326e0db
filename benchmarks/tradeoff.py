"""What accuracy costs: precisions, what is given and context, scored and timed.

    export HBAF_DATA=...                                   # the corpora of the default recipe
    python -m benchmarks.tradeoff --bundle float32 --bundle float16 --save      # bundles beside the built-in one

The default model is scored on its own test conversations (MELD's words with clips of the same label: turns that have
both). Latency and memory are measured here, three seconds and twelve words. With --save the result is also what
`hbaf-edge advise` advises by (hbaf_edge/bench/choices.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import RESULTS, Repeats, Threads, conclude, run
from export.conversations import conversations
from export.score import judged_turns
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.advise import CHOICES
from hbaf_edge.bench.document import Cell, Report, Section, measures_of
from hbaf_edge.bench.series import Series, in_turn, rounded, single
from hbaf_edge.bench.turns import TEXT, Bench, fresh, total, turn_of
from hbaf_edge.bundle import load_bundle
from hbaf_edge.machine import machine
from training.config import Use
from training.corpora.records import UNLABELLED, Dialogue, Utterance
from training.evaluate import Trial
from training.metrics import scores

GIVEN: dict[str, tuple[Use, float | None, bool]] = {
    "audio and text": ("audio+text", 3.0, True),
    "text alone": ("text", None, True),
    "audio alone": ("audio", 3.0, False),
}
COLUMNS = ("f1", "p50_ms", "p90_ms", "megabytes", "peak_mb")


def scored(bundle: Path | None, talks: Sequence[Dialogue], use: Use, context: bool, threads: int) -> float:
    """Weighted F1 on turns that have both modalities, shown `use`; each alone where there is no context."""
    runtime = HBAFRuntime(bundle, threads=threads)
    if not context:
        talks = [replace(d, turns=(u,)) for d in talks for u in d.turns if u.text and u.audio]
    # Turns of one modality stay as context, unless it is the other one; only those with both are scored.
    shown = [replace(d, turns=tuple(scored_if_both(u) for u in d.turns)) for d in talks]
    predictions, labels = judged_turns(runtime, Trial(use, shown), f"{runtime.manifest['precision']}, {use}")
    logits = torch.tensor([list(p.probabilities.values()) for p in predictions]).log()
    return float(scores(logits, torch.tensor(labels), runtime.labels)["weighted_f1"])


def scored_if_both(u: Utterance) -> Utterance:
    """The utterance, without its label where a modality is missing."""
    return u if u.text and u.audio else replace(u, label=UNLABELLED)


def default_model(bundles: list[Path | None], threads: int, repeats: int, turns: int,
                  step: Callable[[], object] = lambda: None) -> tuple[Section, list[dict[str, Any]]]:  # fmt: skip
    """Precisions of the default model, and of the built-in one what is given and whether it remembers."""
    talks = conversations(load_bundle(None).manifest, "test", turns)
    choices: list[dict[str, Any]] = []
    sides: dict[str, Callable[[], float]] = {}
    for path in bundles:
        loaded = load_bundle(path)
        about = {"bundle": "built-in" if path is None else loaded.manifest["precision"],
                 "precision": loaded.manifest["precision"], "megabytes": rounded(loaded.megabytes)}  # fmt: skip
        for given, (use, seconds, with_text) in GIVEN.items():
            if path is not None and given != "audio and text":
                continue
            f1 = scored(path, talks, use, True, threads)
            step()
            for n in sorted({1, threads}):
                name = f"{about['precision']}, {given}, {n} thread{'s' * (n > 1)}"
                sides[name] = total(turn_of(HBAFRuntime(path, threads=n), seconds, TEXT if with_text else None))
                peak = fresh(Bench([path], n, "cpu", 6), seconds, with_text).peak_mb
                choices.append(
                    {"name": name, **about, "given": given, "threads": n, "f1": rounded(f1), "peak_mb": peak}
                )
    alone = scored(None, talks, "audio+text", False, threads)
    times = {name: Series.of(values) for name, values in in_turn(repeats, sides, step).items()}
    for choice in choices:
        s = times[choice["name"]]
        choice.update(p50_ms=rounded(s.p50), p90_ms=rounded(s.p90))
    front = pareto(choices)
    rows: list[Sequence[Cell]] = [
        [c["name"], *(c[k] for k in COLUMNS), "yes" if c["name"] in front else ""] for c in choices
    ]
    labelled = sum(bool(u.text and u.audio) for d in talks for u in d.turns)
    text = (
        f"Weighted F1 on {labelled} turns with both modalities of the default model's own test conversations: MELD's "
        f"words, each with a clip of the same label. Without any earlier turn, audio and text give {alone:.3f}. "
        "The front is of latency, size and F1 together: nothing else is better in all three."
    )
    points = [
        {"name": c["name"], "x": c["p50_ms"], "y": c["f1"], "label": str(c["threads"]),
         "group": f"{c['precision']}, {c['given']}"} for c in choices
    ]  # fmt: skip
    figure = {"kind": "scatter", "points": points, "x_title": "a turn, ms", "y_title": "weighted F1",
              "front": sorted(front, key=lambda n: times[n].p50),
              "title": "Accuracy against latency; the number: threads"}  # fmt: skip
    head = ("what runs", "weighted F1", "p50, ms", "p90, ms", "bundle, MB", "peak memory, MB", "on the front")
    measures = measures_of(times) | {f"{c['name']}, F1": {**single(c["f1"]), "better": "higher"} for c in choices}
    return Section("tradeoff", "Accuracy against cost: the default model", head, rows, text, measures,
                   figure=figure), choices  # fmt: skip


def pareto(choices: Sequence[dict[str, Any]]) -> list[str]:
    """Names of those that no other beats in latency, size and F1 at once.

    >>> three = (("a", 1, 1), ("b", 2, 2), ("c", 3, 1))
    >>> pareto([{"name": n, "p50_ms": t, "megabytes": 1, "f1": f} for n, t, f in three])
    ['a', 'b']
    """

    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        better = (a["p50_ms"] <= b["p50_ms"], a["megabytes"] <= b["megabytes"], a["f1"] >= b["f1"])
        worse = (a["p50_ms"] >= b["p50_ms"], a["megabytes"] >= b["megabytes"], a["f1"] <= b["f1"])
        return all(better) and not all(worse)

    return [c["name"] for c in choices if not any(beats(other, c) for other in choices)]


def main(
    bundle: Annotated[list[Path] | None, typer.Option("--bundle", help="beside the built-in one")] = None,
    note: Annotated[str, typer.Option(help="a sentence on these bundles, for the report")] = "",
    threads: Threads = 2,
    repeats: Repeats = 51,
    turns: Annotated[int, typer.Option(help="of the test conversations")] = 1500,
    save: Annotated[
        bool, typer.Option("--save", help="to benchmarks/results/tradeoff, and for hbaf-edge advise")
    ] = False,
) -> int:
    report = Report("hbaf-edge: accuracy against cost", {"threads": threads, "turns": turns})
    choices: list[dict[str, Any]] = []

    def default() -> Section:
        section, scored_choices = default_model([None, *(bundle or [])], threads, repeats, turns)
        choices.extend(scored_choices)
        section.text += f" {note}" if note else ""
        return section

    code = conclude("tradeoff", report, [("the default model", default)], folder=RESULTS / "tradeoff" if save else None)
    if save and choices:
        score = report.sections[0].text.removesuffix(note).rstrip()
        stored = {"format": 1, "machine": machine(), "score": score, "choices": choices}
        CHOICES.write_text(json.dumps(stored, indent=1) + "\n")
    return code


if __name__ == "__main__":
    run(main, __doc__)
