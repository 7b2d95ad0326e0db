"""Compare accuracy with cost: precisions and modalities of the default model, scored and timed.

    export HBAF_DATA=...                                   # the corpora of the default recipe
    python -m benchmarks.tradeoff --bundle float32 --bundle float16 --save      # bundles besides the built-in one

Text and audio are scored as they are used, each alone, on the dev splits: MELD's turns by weighted F1, and RAVDESS'
clips of actors that were not trained on by UAR. The two are different units and never share a picture. Audio and text
together have no score, since no natural pairs of them are available. Latency and memory are measured on this machine
with 3 s of audio and twelve words. `--save` also updates the choices of `hbaf-edge advise` (bench/choices.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import RESULTS, AsJson, Repeats, Threads, measure_and_report, run
from export.score import bundle_sets, score
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.advise import CHOICES
from hbaf_edge.bench.document import Cell, Report, Section, measures_of
from hbaf_edge.bench.series import Series, interleave, rounded, single_value
from hbaf_edge.bench.turns import TEXT, Bench, measure_fresh_process, repeatable_turn, total_ms
from hbaf_edge.bundle import DEFAULT, load_bundle
from hbaf_edge.errors import InputError
from hbaf_edge.machine import machine_info
from training.config import Use
from training.corpora.records import UNLABELLED, EvaluationSet

# What a turn has, by its name in choices.json: seconds of audio, whether there is text, and its score: the modalities,
# the score's name in training/metrics.py, and its title.
Score = tuple[Use, str, str]
INPUTS: dict[str, tuple[float | None, bool, Score | None]] = {
    "audio and text": (3.0, True, None),
    "text alone": (None, True, ("text", "weighted_f1", "weighted F1")),
    "audio alone": (3.0, False, ("audio", "uar", "UAR")),
}
NO_SCORE = "none, since no natural pairs of audio and text are available"
COLUMNS = ("score", "p50_ms", "p90_ms", "megabytes", "peak_mb")
Choice = dict[str, Any]


def scored_choices(
    bundles: list[Path | None], sets: dict[str, EvaluationSet], threads: int
) -> tuple[list[Choice], dict[str, Callable[[], float]]]:
    """Score every bundle with each kind of inputs; return the choices, and their turns to be timed.

    Args:
        bundles: paths, None for the built-in one.
        sets: dev sets by name.
        threads: the larger of the two numbers of CPU threads.
    """
    choices: list[Choice] = []
    turns: dict[str, Callable[[], float]] = {}
    for path in bundles:
        bundle = load_bundle(path)
        precision = bundle.manifest["precision"]
        about = {"bundle": "built-in" if path is None else precision, "precision": precision,
                 "megabytes": rounded(bundle.megabytes)}  # fmt: skip
        scored = score(path or DEFAULT, sets, threads=threads)
        for inputs, (seconds, with_text, wanted) in INPUTS.items():
            value = None
            if wanted is not None:
                (value,) = (scored[name][wanted[1]] for name, one in sets.items() if one.use == wanted[0])
            for n in sorted({1, threads}):
                name = f"{precision}, {inputs}, {n} thread{'s' * (n > 1)}"
                text = TEXT if with_text else None
                turns[name] = total_ms(repeatable_turn(HBAFRuntime(path, threads=n), seconds, text))
                peak = measure_fresh_process(Bench([path], n, "cpu", 6), seconds, with_text).peak_mb
                choices.append({"name": name, **about, "given": inputs, "threads": n, "score": value and rounded(value),
                                "peak_mb": peak})  # fmt: skip
    return choices, turns


def score_titles(sets: dict[str, EvaluationSet]) -> tuple[dict[str, str], dict[str, int]]:
    """By the name of the inputs: which score it is and of what; and the number of scored turns, 0 without a score."""
    titles, turns = {}, {}
    for inputs, (_, _, wanted) in INPUTS.items():
        titles[inputs], turns[inputs] = NO_SCORE, 0
        for name, one in sets.items():
            if wanted is not None and one.use == wanted[0]:
                labelled = sum(u.label != UNLABELLED for d in one.dialogues for u in d.turns)
                titles[inputs] = f"{wanted[2]} of {labelled} turns of {name}, which also chose the model"
                turns[inputs] = labelled
    return titles, turns


def sections(choices: Sequence[Choice], times: dict[str, Series], titles: dict[str, str]) -> list[Section]:
    """Return a table for each kind of inputs, with a picture where there is a score."""
    result = []
    for inputs, title in titles.items():
        mine = [c for c in choices if c["given"] == inputs]
        front = pareto(mine) if mine[0]["score"] is not None else []
        rows: list[Sequence[Cell]] = [
            [c["name"], *(c[k] for k in COLUMNS), "yes" if c["name"] in front else ""] for c in mine
        ]
        text = f"Score: {title}."
        if front:
            text += " A row is on the front if no other is better in latency, size and score together."
        measures = measures_of({c["name"]: times[c["name"]] for c in mine})
        if front:
            measures |= {f"{c['name']}, score": {**single_value(c["score"]), "better": "higher"} for c in mine}
        head = ("what runs", "score", "p50, ms", "p90, ms", "bundle, MB", "peak memory, MB", "on the front")
        figure = scatter(mine, sorted(front, key=lambda name: times[name].p50), title) if front else None
        name = f"tradeoff_{inputs.split()[0] if front else 'both'}"
        result.append(Section(name, f"Accuracy against cost: {inputs}", head, rows, text, measures, figure=figure))
    return result


def scatter(choices: Sequence[Choice], front: list[str], score_title: str) -> dict[str, Any]:
    """Return the figure of the score against latency."""
    points = [
        {"name": c["name"], "x": c["p50_ms"], "y": c["score"], "label": str(c["threads"]), "group": c["precision"]}
        for c in choices
    ]
    return {"kind": "scatter", "points": points, "x_title": "a turn, ms", "y_title": score_title.split(" of ")[0],
            "front": front, "y_span": 0.1,
            "title": f"Accuracy against latency: {choices[0]['given']}; numbers are CPU threads"}  # fmt: skip


def pareto(choices: Sequence[Choice]) -> list[str]:
    """Return the names of the choices that no other beats in latency, size and score together.

    >>> three = (("a", 1, 1), ("b", 2, 2), ("c", 3, 1))
    >>> pareto([{"name": n, "p50_ms": t, "megabytes": 1, "score": f} for n, t, f in three])
    ['a', 'b']
    """

    def beats(a: Choice, b: Choice) -> bool:
        not_worse = (a["p50_ms"] <= b["p50_ms"], a["megabytes"] <= b["megabytes"], a["score"] >= b["score"])
        not_better = (a["p50_ms"] >= b["p50_ms"], a["megabytes"] >= b["megabytes"], a["score"] <= b["score"])
        return all(not_worse) and not all(not_better)

    return [c["name"] for c in choices if not any(beats(other, c) for other in choices)]


def main(
    bundle: Annotated[list[Path] | None, typer.Option("--bundle", help="besides the built-in one")] = None,
    threads: Threads = 2,
    repeats: Repeats = 51,
    save: Annotated[
        bool, typer.Option("--save", help="write benchmarks/results/tradeoff and the choices of hbaf-edge advise")
    ] = False,
    as_json: AsJson = False,
) -> int:
    built_in = load_bundle(None)
    report = Report("hbaf-edge: accuracy against cost", {"threads": threads}, bundle=built_in.model_key)
    precisions = {row["sha256"] for row in built_in.manifest["parity"]}
    for path in bundle or []:
        if load_bundle(path).model_key not in precisions:
            raise InputError(
                f"{path} is not a precision of the model that ships; export.release makes them in its --work"
            )
    sets = {name: one for name, one in bundle_sets(built_in.manifest).items() if one.use != "audio+text"}
    (titles, scored_turns), choices = score_titles(sets), list[Choice]()

    def measure() -> list[Section]:
        scored, turns = scored_choices([None, *(bundle or [])], sets, threads)
        times = {name: Series.of(values) for name, values in interleave(repeats, turns).items()}
        for choice in scored:
            series = times[choice["name"]]
            choice.update(p50_ms=rounded(series.p50), p90_ms=rounded(series.p90))
        choices.extend(scored)
        return sections(scored, times, titles)

    folder = RESULTS / "tradeoff" if save else None
    code = measure_and_report("tradeoff", report, [("the default model", measure)], folder=folder, as_json=as_json)
    if save and choices:
        stored = {"format": 2, "key": report.bundle, "machine": machine_info(), "scores": titles,
                  "turns": scored_turns, "choices": choices}  # fmt: skip
        CHOICES.write_text(json.dumps(stored, indent=1) + "\n")
    return code


if __name__ == "__main__":
    run(main, __doc__)
