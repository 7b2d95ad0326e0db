"""What people read about a bundle: its model card, its licence, and one line per score."""

from __future__ import annotations

from typing import Any

from hbaf_edge.card import NOTICE

TERMS = {
    "CC-BY-NC-SA-4.0": "Creative Commons\nAttribution-NonCommercial-ShareAlike 4.0 International (CC BY-NC-SA 4.0):\n"
    "https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode"
}
CORPORA = {"tess": "TESS (English)", "turev": "TurEV (Turkish)", "ased": "ASED (Amharic)", "secap": "SECap (Chinese)"}
PRECISIONS = "Every precision compared with PyTorch in float32, with {}"


def licence_text(about: dict[str, Any]) -> str:
    """The text of LICENSE-WEIGHTS, for weights that may not be used commercially."""
    licence = about["licence"]
    terms = TERMS.get(licence["id"], f"{licence['id']}.")
    lines = [
        f"The weights in this folder ({about['name']}) are licensed under {terms}",
        "",
        f"They may NOT be used commercially: {licence['why']}.",
        "The code of hbaf-edge is Apache-2.0; a model trained on other data does not have this restriction.",
        "",
        "Trained on:",
        *(f"- {d['name']}: {d['licence']} ({d['use']})" for d in about.get("data", [])),
        "",
        "Built on:",
        *(f"- {e['model']}: {e['licence']}" for e in about.get("encoders", {}).values()),
    ]
    return "\n".join(lines) + "\n"


def model_card(about: dict[str, Any], labels: tuple[str, ...]) -> str:
    """The model card in Markdown, from the descriptive fields of the manifest.

    >>> about = {"name": "m", "precision": "float32", "licence": {"id": "MIT", "commercial": True, "why": "example"}}
    >>> print(model_card(about, ("joy", "fear")).splitlines()[0])
    # Model card: m
    """
    licence = about["licence"]
    use = "commercial use is allowed" if licence.get("commercial") else "**not for commercial use**"
    parts = [
        f"# Model card: {about['name']}",
        f"{about.get('description', 'HBAF')}. Labels: {', '.join(labels)}. Weights: {about['precision']}.\n\n{NOTICE}",
        f"## Licence of the weights\n{licence['id']}, {use}: {licence['why']}.",
        _section("Trained on", [f"{d['name']}: {d['licence']}; {d['use']}" for d in about.get("data", [])]),
        _section(
            "Built on", [f"{kind}: {e['model']} ({e['licence']})" for kind, e in about.get("encoders", {}).items()]
        ),
        _section("Voices of corpora that it was not trained on: UAR", _voices(about.get("voices", {}))),
        _section("Scores, measured with the runtime", _scores(about.get("scores", {}))),
        _section(PRECISIONS.format(about.get("parity_about", {}).get("reference", "the trained weights")),
                 [_parity_line(row) for row in about.get("parity", [])]),
        _section("Limits", about.get("limits", [])),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", *(f"- {line}" for line in lines)]) if lines else ""


def _parity_line(row: dict[str, Any]) -> str:
    """One precision of a parity chain."""
    # No F1 itself: these conversations pair texts with clips of the same label, so only its change means anything.
    f1 = "" if row["weighted_f1"] is None else f", weighted F1 changes by {-row['f1_drop']:+.4f}"
    return (
        f"{row['name']}: {row['flip_rate']:.2%} of the labels differ, cosine of the embedding "
        f"{row['cosine_mean']:.4f}{f1}, {row['megabytes']:.1f} MB"
        + (f"; **exceeds its limits**: {'; '.join(row['broken'])}" if row["broken"] else "")
    )


def _voices(voices: dict[str, Any]) -> list[str]:
    """One line per corpus: as a speaker's first turn, and after each kind of history."""
    lines = []
    for name, row in voices.items():
        kinds = [kind for kind in ("first turn", "life-like", "one mood") if f"model, {kind}" in row]
        of_model, of_linear = (
            ", ".join(f"{kind} {row[f'{who}, {kind}']:.2f}" for kind in kinds) for who in ("model", "linear")
        )
        if kinds:
            lines.append(
                f"{name}, {row['clips']} clips (chance {row['chance']:.2f}): {of_model}; linear model {of_linear}"
            )
    return lines


def _scores(scores: dict[str, Any]) -> list[str]:
    """One line per test set with the recall of each label, and the difference from float32."""
    lines = []
    for name, s in scores.items():
        if "weighted_f1" not in s:
            lines.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in s.items()))
            continue
        recalls = ", ".join(f"{label} {value:.2f}" for label, value in s["recall"].items())
        lines.append(
            f"{name}, {s['utterances']} utterances: weighted F1 {s['weighted_f1']:.3f}, macro F1 {s['macro_f1']:.3f}, "
            f"UAR {s['uar']:.3f}, ECE {s['ece']:.3f}; recall {recalls}"
        )
    return lines


def headline(scores: dict[str, Any]) -> dict[str, str]:
    """One line per set, and one for the difference from float32, as `hbaf-edge info` shows them."""
    lines = {
        name: f"weighted F1 {s['weighted_f1']:.3f}, UAR {s['uar']:.3f} on {s['utterances']} utterances"
        for name, s in scores.items() if name != "against_float32"
    }  # fmt: skip
    if "against_float32" in scores:
        d = scores["against_float32"]
        lines["against float32"] = f"{d['label_flips']} of {d['turns']} labels differ ({d['flip_rate']:.2%})"
    return lines
