"""Write the published figures into README and the site, from the result files, the ledger and the default bundle.

    python -m benchmarks.publish            # make figures
    python -m benchmarks.publish --check    # changes nothing; fails if a page or a picture is out of date

A page marks a generated part with `<!-- figures: NAME -->` and `<!-- end of figures -->`; NAME is a key of `PARTS`. A
result of another bundle than the one that ships cannot be published: measure it again with its command, which
docs/benchmarks.md names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import RESULTS, WITHOUT_BUNDLE, run
from export.model_card import CORPORA
from hbaf_edge.bench.document import Cell, Report, Section, cell_text, load, markdown_table
from hbaf_edge.bundle import Bundle, load_bundle
from hbaf_edge.errors import InputError
from training import ledger
from training.files import CHECKOUT
from training.voices import MEAN_OF

PICTURES = {"state": "whole", "encoders": "whole", "stages": "whole", "tradeoff_text": "tradeoff"}  # name: its report
PART = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


@cache
def shipped() -> Bundle:
    """The bundle that ships, read and hashed once for all parts."""
    return load_bundle(None)


def result(name: str) -> Report:
    """Load a committed result.

    Raises:
        InputError: it is missing, or of another bundle than the default one.
    """
    folder = RESULTS / name
    report = load(folder if folder.is_dir() else RESULTS / f"{name}.json")
    key = shipped().model_key
    if report.bundle != key and name not in WITHOUT_BUNDLE:
        measured = report.bundle[:12] or "none"
        raise InputError(f"the result {name} is of bundle {measured}, and {key[:12]} ships; measure it again: "
                         "docs/benchmarks.md names the command")  # fmt: skip
    return report


def section(name: str, section_name: str) -> Section:
    """Load a section of a result."""
    one = result(name).section(section_name)
    if one is None:
        raise InputError(f"the result {name} has no section {section_name}; measure it again")
    return one


def measured_on(name: str) -> str:
    """One line on when, where and how a result was measured."""
    report = result(name)
    machine = report.machine
    where = f"{machine['cores']} cores of {machine['cpu'].strip()}, ONNX Runtime {machine['onnxruntime']}"
    key = f", bundle {report.bundle[:12]}" if report.bundle else ""
    return f"Measured {report.created[:10]} with `{report.command}`: {where}, commit {report.commit}{key}."


def table_of(name: str, section_name: str) -> Callable[[], str]:
    """A part with a section's text and table, and where it was measured."""

    def part() -> str:
        one = section(name, section_name)
        text = f"{one.text}\n\n" if one.text else ""
        return f"{text}{markdown_table(one.head, one.rows)}\n\n{measured_on(name)}"

    return part


def on_test() -> dict[str, Any]:
    """The default bundle's scores in the ledger, by test set.

    Raises:
        InputError: it was never scored on test.
    """
    scores = ledger.scores_of(shipped().model_key)
    if not scores:
        command = "python -m export.score hbaf_edge/models/default --final"
        raise InputError(f"the default bundle is not in the ledger; run: {command}")
    return scores


def voices_on_test() -> dict[str, Any]:
    """The default bundle's rows of unseen corpora in the ledger, by corpus."""
    return {name.removesuffix(", voices"): s for name, s in on_test().items() if name.endswith(", voices")}


def readme_table() -> str:
    """README's figures: speed, sizes, scores."""
    whole, manifest = result("whole"), shipped().manifest
    turn = section("whole", "stages").measures["a turn"]
    ratios = {name: m for s in ("state", "encoders", "software") for name, m in section("whole", s).measures.items()}
    sizes = {row[0]: row[1] for row in section("first_look", "first_look").rows}
    memory = {row[0]: row[1] for row in section("whole", "memory").rows}
    rows: list[tuple[str, str]] = [
        (f"a turn (3 s of audio, twelve words), {whole.settings['threads']} threads: p50, p90, p99",
         f"{turn['p50']:.1f}, {turn['p90']:.1f}, {turn['p99']:.1f} ms"),
        *((f"{name}: relative to our {'fusion' if 'fusion of' in name else 'turn'}",
           f"**{ratios[name]['p50']:.1f} ×** as long ({ratios[name]['low']:.1f}–{ratios[name]['high']:.1f})")
          for name in README_RATIOS if name in ratios),
        ("state of a conversation, at any length", f"{cell_text(memory['state of a conversation'])} KiB"),
        ("weights; wheel; installed with all dependencies",
         f"{cell_text(memory['bundle'])}; {cell_text(sizes['wheel, MB'])}; "
         f"{cell_text(sizes['installed, without torch, MB'])} MB"),
        *score_rows(on_test()),
        (f"labels that differ between INT8 and float32 with {manifest['parity_about']['reference']}; dev conversations",
         f"{manifest['parity'][-1]['flip_rate']:.2%}"),
    ]  # fmt: skip
    return (f"{markdown_table(('what', 'measured'), rows)}\n\nTimes and ratios: {measured_on('whole')} Sizes: "
            f"{measured_on('first_look')} Scores: the ledger in [Results](docs/results.md).")  # fmt: skip


README_RATIOS = (
    "the last 32 turns again, without state",
    "fusion of all 94 turns again, without state",
    "RoBERTa + wav2vec2, random weights, INT8: one utterance, no fusion",
    "Whisper tiny.en speech recognition (faster-whisper)",
)


def score_rows(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """README's rows of test scores, the voices of unseen corpora first."""
    rows = []
    unseen = {name: s for name, s in voices_on_test().items() if name in MEAN_OF and "model, first turn" in s}
    if unseen:
        model, linear, chance = (
            sum(s[column] for s in unseen.values()) / len(unseen)
            for column in ("model, first turn", "linear, first turn", "chance")
        )
        what = f"**audio only, corpora that it never met** ({', '.join(map(CORPORA.__getitem__, unseen))}): mean UAR"
        rows.append((what, f"**{model:.2f}**; a linear model on the same encoder {linear:.2f}, chance {chance:.2f}"))
    for name, s in scores.items():
        if "weighted_f1" in s:
            rows.append((f"{name} ({s['utterances']:,} turns): weighted F1, macro F1, UAR, ECE",
                         f"{s['weighted_f1']:.3f}, {s['macro_f1']:.3f}, {s['uar']:.3f}, {s['ece']:.3f}"))  # fmt: skip
    return rows


def natural() -> str:
    """How many of the natural clips the default model gets right."""
    one = section("natural", "natural")
    counts = {use: int(m["p50"]) for use, m in one.measures.items()}
    command = "`python -m benchmarks.natural --final`"
    return (f"On {len(one.rows)} natural MELD clips ({command}) the default model is right "
            f"on {counts['text']} by text, {counts['audio']} by audio and {counts['both']} by both: an anecdote, not a "
            f"score ({result('natural').created[:10]}, commit {result('natural').commit}).")  # fmt: skip


def demo() -> str:
    """What `make demo` prints, shortened: the second turn, and the last lines."""
    lines = [str(line) for (line,) in section("first_look", "demo").rows]
    turns = [i for i, line in enumerate(lines) if "→" in line]
    shown = [line.rstrip() for line in (*lines[turns[1] : turns[2]], "…", *lines[-2:])]
    return "```text\n" + "\n".join(shown) + "\n```"


def parity() -> str:
    """The chain of precisions of the bundle that ships, from its manifest."""
    manifest = shipped().manifest
    rows: list[list[Cell]] = [
        [row["name"], f"{row['flip_rate']:.2%}", row["cosine_mean"], f"{-row['f1_drop']:+.4f}", row["megabytes"]]
        for row in manifest["parity"]
    ]
    head = ("precision", "labels that differ", "cosine of the embedding", "change of weighted F1", "MB")
    about = manifest["parity_about"]
    return (f"Reference: PyTorch in float32 with {about['reference']}; {about['turns']:,} turns of {about['split']} "
            f"conversations.\n\n{markdown_table(head, rows)}\n\nMeasured {about['created'][:10]} with "
            f"`python -m export.verify`, commit {about['commit']}.")  # fmt: skip


def scores_on_test() -> str:
    """Test scores of the bundle that ships, with the recall of each label."""
    rows: list[list[Cell]] = [
        [name, s["utterances"], *(f"{s[k]:.3f}" for k in ("weighted_f1", "macro_f1", "uar", "ece")),
         ", ".join(f"{label} {value:.2f}" for label, value in s["recall"].items())]
        for name, s in on_test().items() if "weighted_f1" in s
    ]  # fmt: skip
    head = ("test set", "turns", "weighted F1", "macro F1", "UAR", "ECE", "recall")
    return f"{markdown_table(head, rows)}\n\n{read_on('test')}"


def unseen_voices() -> str:
    """Unseen corpora: the bundle that ships and the linear model."""
    kinds = [f"{who}, {kind}" for who in ("linear", "model") for kind in ("first turn", "life-like", "one mood")]
    rows: list[list[Cell]] = [
        [CORPORA[name], s["clips"], f"{s['chance']:.2f}", *(f"{s[kind]:.3f}" if kind in s else None for kind in kinds)]
        for name, s in voices_on_test().items()
    ]  # fmt: skip
    return f"{markdown_table(('corpus', 'clips', 'chance', *kinds), rows)}\n\n{read_on('voices')}"


def read_on(word: str) -> str:
    """One line on when the default bundle's test sets with this word in their names were read."""
    key = shipped().model_key
    entries = [e for e in ledger.entries() if e["sha256"] == key and any(word in name for name in e["data"])]
    return " ".join(f"Read {e['date'][:10]} with `{e['command']}`, commit {e['commit']}." for e in entries)


def readings() -> str:
    """Every line of the ledger."""
    rows: list[list[Cell]] = []
    for e in ledger.entries():
        sets = ", ".join(f"{name.split(';')[0]} ({digest[:8]})" for name, digest in e["data"].items())
        rows.append([e["date"][:10], e["commit"], f"{e['model']} ({e['sha256'][:8]})", sets, _main_scores(e["scores"]),
                     f"`{e['command']}`"])  # fmt: skip
    return markdown_table(("date", "commit", "model (hash)", "test data (hash)", "scores", "command"), rows)


def _main_scores(scores: dict[str, Any]) -> str:
    """The first score of each test set of a reading."""
    shown = []
    for s in scores.values():
        if isinstance(s, list):
            shown.append(f"{len(s)} answers")
        elif "weighted_f1" in s:
            shown.append(f"weighted F1 {s['weighted_f1']:.3f}, UAR {s['uar']:.3f}")
        elif "mean" in s:
            shown.append(f"weighted F1 {s['mean']['weighted_f1']:.3f}, UAR {s['mean']['uar']:.3f}")
        else:
            shown.append(f"UAR {s['model, first turn']:.3f}" if "model, first turn" in s else "–")
    return "; ".join(shown)


PARTS: dict[str, Callable[[], str]] = {
    "readme": readme_table,
    "demo": demo,
    "natural": natural,
    "natural-clips": table_of("natural", "natural"),
    "test-scores": scores_on_test,
    "unseen-voices": unseen_voices,
    "voices": table_of("voices", "voices"),
    "parity": parity,
    "ledger": readings,
    "ablations": table_of("ablation-features", "ablation_features"),
    "state": table_of("whole", "state"),
    "encoders": table_of("whole", "encoders"),
    "software": table_of("whole", "software"),
    "stages": table_of("whole", "stages"),
    "context": table_of("whole", "context"),
    "live": table_of("incremental", "end_of_speech"),
    "threads": table_of("incremental", "many_threads"),
    "memory": table_of("incremental", "long_memory"),
    "tradeoff-text": table_of("tradeoff", "tradeoff_text"),
    "tradeoff-audio": table_of("tradeoff", "tradeoff_audio"),
}


def pages() -> list[Path]:
    """README and the pages of the site."""
    return [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]


def rendered(text: str) -> str:
    """A page with its generated parts written anew.

    Raises:
        InputError: a part has an unknown name, or its result cannot be published.
    """

    def replace(match: re.Match[str]) -> str:
        if match[2] not in PARTS:
            raise InputError(f"there is no part {match[2]!r}; PARTS in {Path(__file__).name} has: {', '.join(PARTS)}")
        return f"{match[1]}{PARTS[match[2]]()}\n{match[3]}"

    return PART.sub(replace, text)


def outdated() -> dict[Path, bytes]:
    """Pages and pictures that differ from their results, with what they should be."""
    wanted = {page: rendered(page.read_text(encoding="utf-8")).encode() for page in pages()}
    for name, report in PICTURES.items():
        picture = RESULTS / report / f"{name}.png"
        if not picture.exists():
            raise InputError(f"{picture.relative_to(CHECKOUT)} is missing; measure {report} again")
        wanted[CHECKOUT / "docs" / "figures" / picture.name] = picture.read_bytes()
    return {path: content for path, content in wanted.items() if not path.exists() or path.read_bytes() != content}


def main(check: Annotated[bool, typer.Option("--check", help="only report what is out of date")] = False) -> int:
    changed = outdated()
    for path, content in changed.items():
        print(f"{'out of date' if check else 'written'}: {path.relative_to(CHECKOUT)}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return int(check and bool(changed))


if __name__ == "__main__":
    run(main, __doc__)
