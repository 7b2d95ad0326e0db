"""What scores look like: confusion matrix and reliability diagram as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from torch import Tensor

from training.metrics import BINS, reliability

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(logits: Tensor, labels: Tensor, names: Sequence[str], found: dict[str, Any], title: str, path: Path) -> Path:
    """Write the picture of one scored set.

    Args:
        logits, labels: (U, labels), after temperature scaling, and (U,).
        names: of the labels.
        found: its scores (training/metrics.py).
        title: what was scored, on what.
        path: of the PNG.
    """
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    _confusion(left, np.array(found["confusion"], float), names)
    _reliability(right, logits, labels, found["ece"])
    figure.suptitle(f"{title}: weighted F1 {found['weighted_f1']:.3f}, UAR {found['uar']:.3f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _confusion(axes: Any, counts: np.ndarray, names: Sequence[str]) -> None:
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        axes.text(
            j, i, f"{counts[i, j]:.0f}", ha="center", va="center", color="white" if share[i, j] > 0.5 else "black"
        )
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="recognised", ylabel="labelled", title="utterances")


def _reliability(axes: Any, logits: Tensor, labels: Tensor, ece: float) -> None:
    sure, right, share = reliability(logits, labels)
    edges = (np.arange(BINS) + 0.5) / BINS
    axes.bar(edges, share / max(share.max(), 1e-9) * 0.25, width=0.9 / BINS, color="0.85", label="share of utterances")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--")
    axes.plot(sure, right, marker="o", label="accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="accuracy", title=f"calibration, ECE {ece:.3f}")
    axes.legend(loc="upper left")


def bars(rows: dict[str, tuple[float, float]], what: str, path: Path) -> Path:
    """Horizontal bars with deviations, such as an ablation's: name -> (mean, sd)."""
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(rows) + 1.2), layout="constrained")
    names = list(rows)[::-1]
    means, spread = zip(*(rows[n] for n in names))
    axes.barh(names, means, xerr=spread, color=["#4477aa" if n == names[-1] else "#99bbdd" for n in names])
    axes.axvline(rows[names[-1]][0], color="0.4", linestyle=":")
    axes.set(xlim=(min(means) - 0.03, max(means) + 0.02), xlabel=what)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
