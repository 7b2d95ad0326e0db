"""How results look to people: a table of turns, and one turn with bars for its probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hbaf_edge.prediction import Prediction

COLOURS = {
    "anger": "red",
    "disgust": "green",
    "fear": "magenta",
    "joy": "yellow",
    "neutral": "white",
    "sadness": "blue",
    "surprise": "cyan",
}
BAR = 24  # characters of a probability of one


def shown_label(p: Prediction) -> Text:
    """The label in its colour, or a dash below the confidence asked for."""
    return Text(p.label or "—", style=f"bold {COLOURS.get(p.label or '', 'white')}")


def turns_table(predictions: Sequence[Prediction], texts: Sequence[str | None]) -> Table:
    """A row per turn."""
    table = Table("turn", "speaker", "text", "emotion", "confidence", "used", "ms", title=None)
    for p, text in zip(predictions, texts):
        said = Text(p.speaker or "?"), Text(text or "")  # as Text: what people say must not be read as markup
        used = "+".join(p.modalities)
        table.add_row(str(p.turn), *said, shown_label(p), f"{p.confidence:.2f}", used, f"{p.timing['total']:.0f}")
    return table


def turn_bars(p: Prediction, text: str | None) -> RenderableType:
    """One turn: who said what, the emotion, and a bar per label."""
    head = Text.assemble((f"{p.speaker or '?'}: ", "bold"), text or "(no words)", "  → ", shown_label(p))
    bars = Table.grid(padding=(0, 1))
    for label, probability in sorted(p.probabilities.items(), key=lambda pair: -pair[1]):
        full = "█" * round(probability * BAR)
        bars.add_row(f"   {label:9}", Text(f"{full:{BAR}}", style=COLOURS.get(label, "white")), f"{probability:.2f}")
    notes = [Text(f"   note: {warning}", style="dim") for warning in p.warnings]
    return Group(head, bars, *notes)
