"""Draws docs/how_it_works.png: how a turn passes through HBAF, and what the default model answers to the example.

python docs/how_it_works.py

The picture carries the key of the bundle that gave the answers, so that a test can tell when it is out of date.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from hbaf_edge import HBAFRuntime, Prediction
from hbaf_edge.card import NOTICE

PICTURE = Path(__file__).with_suffix(".png")
EXAMPLE = Path(__file__).parents[1] / "hbaf_edge" / "examples" / "conversation.jsonl"
AUDIO, TEXT, FUSED, STATE = "#dbe9f6", "#fde3c8", "#dff0d8", "#eeeeee"
LABEL_COLOURS = {
    "anger": "#d62728",
    "disgust": "#2ca02c",
    "fear": "#9467bd",
    "joy": "#f2c200",
    "neutral": "#b0b0b0",
    "sadness": "#1f77b4",
    "surprise": "#17becf",
}
# x, y, width, text, colour
BOXES = [
    (0.0, 0.0, 1.5, "audio\n16 kHz → log-mel", AUDIO),
    (0.0, 1.0, 1.5, "text\n→ tokens", TEXT),
    (1.9, 0.0, 1.6, "Whisper encoder\n50 Hz frames", AUDIO),
    (1.9, 1.0, 1.6, "MiniLM\ntoken states", TEXT),
    (3.9, 0.0, 1.9, "audio context network\n+ earlier turns", AUDIO),
    (3.9, 1.0, 1.9, "projection", TEXT),
    (6.2, 0.5, 1.9, "utterance scope\nframes × tokens\nattention gate × 2", FUSED),
    (8.5, 0.5, 1.9, "dialogue scope\nlast 32 turns\nattention gate × 2", FUSED),
    (10.8, 0.5, 1.3, "emotion\nof the turn", FUSED),
]
ARROWS = [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (6, 7), (7, 8)]
HEIGHT = 0.72


def draw_flow(ax: Axes) -> None:
    """The stages from left to right, and the conversation's state below them."""
    for x, y, width, text, colour in BOXES:
        ax.add_patch(
            FancyBboxPatch((x, y), width, HEIGHT, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec="#555")
        )
        ax.text(x + width / 2, y + HEIGHT / 2, text, ha="center", va="center", fontsize=9)
    for a, b in ARROWS:
        start = (BOXES[a][0] + BOXES[a][2] + 0.03, BOXES[a][1] + HEIGHT / 2)
        end = (BOXES[b][0] - 0.05, BOXES[b][1] + HEIGHT / 2)
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555"})
    ax.add_patch(FancyBboxPatch((3.9, -1.0), 6.5, 0.5, boxstyle="round,pad=0.02", fc=STATE, ec="#555", ls="--"))
    ax.text(
        7.15, -0.75, "Conversation: keys and values of the last 32 turns, 384 KiB, constant", ha="center", va="center"
    )
    for x, top in ((4.85, -0.03), (9.45, 0.47)):
        ax.annotate("", (x, top), (x, -0.47), arrowprops={"arrowstyle": "<|-|>", "color": "#555", "ls": "--"})
    ax.set(xlim=(-0.15, 12.3), ylim=(-1.15, 1.85))
    ax.axis("off")


def draw_turns(ax: Axes, predictions: list[Prediction], texts: list[str]) -> None:
    """One stacked bar per turn, with its text on the left and its label on the right."""
    labels = list(predictions[0].probabilities)
    left = np.zeros(len(predictions))
    rows = np.arange(len(predictions))
    for label in labels:
        width = np.array([p.probabilities[label] for p in predictions])
        ax.barh(rows, width, left=left, color=LABEL_COLOURS.get(label), label=label, height=0.62)
        left += width
    names = [f"{p.speaker}: {textwrap.shorten(t, 62)}" for p, t in zip(predictions, texts)]
    ax.set_yticks(rows, names, fontsize=9)
    for row, p in enumerate(predictions):
        ax.text(1.01, row, str(p.label), va="center", fontsize=9, weight="bold")
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="probability")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(ncols=len(labels), loc="upper center", bbox_to_anchor=(0.2, -0.14), frameon=False, fontsize=9)


def main() -> None:
    """Predict the example conversation and draw it."""
    runtime = HBAFRuntime()
    conversation = runtime.conversation()
    turns = [json.loads(line) for line in EXAMPLE.read_text(encoding="utf-8").splitlines()]
    predictions = [
        runtime.predict(EXAMPLE.parent / t["audio"], text=t["text"], speaker=t["speaker"], conversation=conversation)
        for t in turns
    ]
    figure = plt.figure(figsize=(12, 7.6))
    draw_flow(figure.add_axes((0.01, 0.58, 0.98, 0.41)))
    draw_turns(figure.add_axes((0.37, 0.13, 0.53, 0.42)), predictions, [t["text"] for t in turns])
    figure.text(0.99, 0.01, NOTICE, ha="right", fontsize=8, color="#666")
    figure.savefig(PICTURE, dpi=110, metadata={"Description": f"bundle {conversation.key}"})
    print(PICTURE)


if __name__ == "__main__":
    main()
