"""The short form of the model card, for `repr(runtime)` and `hbaf-edge info`."""

from __future__ import annotations

from typing import Any

NOTICE = "An estimate of the emotion expressed, not of what a person feels."


def describe(manifest: dict[str, Any]) -> list[str]:
    """Describe a bundle, one line per topic: labels, window, encoders, scores and licence.

    >>> describe({"name": "m", "labels": ["joy", "fear"], "window": 8})[0]
    'm: joy, fear'
    """
    lines = [f"{manifest.get('name', 'bundle')}: {', '.join(manifest['labels'])}"]
    lines.append(f"context: the last {manifest['window']} turns; weights: {manifest.get('precision', 'unknown')}")
    encoders = manifest.get("encoders", {})
    if encoders:
        lines.append("encoders: " + "; ".join(f"{modality} {e.get('model', '?')}" for modality, e in encoders.items()))
    lines += [f"{name}: {value}" for name, value in manifest.get("headline", {}).items()]
    licence = manifest.get("licence", {})
    if licence:
        use = "commercial use allowed" if licence.get("commercial") else "NON-COMMERCIAL use only"
        lines.append(f"licence of the weights: {licence.get('id', 'unknown')}, {use} ({licence.get('why', '')})")
    return [*lines, NOTICE]
