"""The model card of a bundle: what it is, what it learned from, what it scores, what it must not be used for."""

from __future__ import annotations

from typing import Any

from hbaf_edge.card import NOTICE

# Pairs of words and clips of one label make the level of such a score mean nothing, and its changes much.
PRECISIONS = "Every precision against PyTorch in float32 (on one set of conversations: compare the rows)"


def model_card(about: dict[str, Any], labels: tuple[str, ...]) -> str:
    """Markdown from the manifest's descriptive fields.

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
        _section("Scores, through the runtime that ships", _scores(about.get("scores", {}))),
        _section(PRECISIONS, [_step(s) for s in about.get("parity", [])]),
        _section("Limits", about.get("limits", [])),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", *(f"- {line}" for line in lines)]) if lines else ""


def _step(step: dict[str, Any]) -> str:
    """One precision of a parity chain."""
    f1 = "" if step["weighted_f1"] is None else f", weighted F1 {step['weighted_f1']:.4f} ({-step['f1_drop']:+.4f})"
    return (
        f"{step['name']}: {step['flip_rate']:.2%} of the labels differ, cosine of the fused vector "
        f"{step['cosine_mean']:.4f}{f1}, {step['megabytes']:.1f} MB"
        + (f"; **breaks its limits**: {'; '.join(step['broken'])}" if step["broken"] else "")
    )


def _scores(scores: dict[str, Any]) -> list[str]:
    """A line per held-out set with its recalls, and the distance from float32."""
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
