"""Show results on a terminal: one line per turn, bars for probabilities, and strings without control characters."""

from __future__ import annotations

import os
import re
import sys
import textwrap

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hbaf_edge.answers import Answer
from hbaf_edge.card import NOTICE
from hbaf_edge.dialogue_file import Utterance
from hbaf_edge.prediction import Prediction

COLOURS = {
    "anger": "red",
    "disgust": "green",
    "fear": "magenta",
    "joy": "yellow",
    "sadness": "blue",
    "surprise": "cyan",
}
BAR = 24  # characters, for a probability of 1
LABEL = 9  # characters of the label column
MIN_FULL_WIDTH = 72  # columns; a narrower terminal shows turns without modalities and time
NOTE_INDENT = 6  # columns before the notes below a turn
MIN_TEXT = 12  # columns of the text on the narrowest terminal

BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
# C0, DEL and C1 move the cursor, rename windows and more; U+202A-202E and U+2066-2069 change the direction of the
# text; lone surrogates cannot be encoded.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Make a string from outside safe for a terminal: controls become visible, line breaks become spaces.

    >>> print(printable("ok \x1b[2J\nnext"))
    ok \x1b[2J next
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), BREAKS.sub(" ", text))


def screen(*, stderr: bool = False) -> Console:
    """A console that prints strings unchanged: no markup in brackets, no emoji between colons, no coloured numbers."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def show_line(console: Console, text: str, style: str = "") -> None:
    """Print a string from outside on one line. Only a terminal on standard output wraps it between words."""
    console.print(Text(printable(text), style), soft_wrap=console.stderr or not console.is_terminal)


def show_error(error: object) -> None:
    """Print an error as one line on standard error."""
    show_line(screen(stderr=True), f"error: {error}", "red")


class AnswerPrinter:
    """Print answers as they arrive, as JSON or as aligned lines.

    Args:
        as_json: print JSON.
        has_headings: print the names of the dialogue files, because there are several sources.
    """

    def __init__(self, as_json: bool, has_headings: bool = False) -> None:
        self._as_json, self._has_headings = as_json, has_headings
        self._last: Utterance | None = None
        self._out, self._err = screen(), screen(stderr=True)
        self._is_terminal = sys.stdout.isatty()
        self._width = self._out.width if self._is_terminal else None

    def show(self, answer: Answer) -> None:
        """Print and flush one answer. Its error also goes to standard error unless standard output is a terminal."""
        utterance = answer.utterance
        if answer.error is not None and not (utterance.is_turn and self._is_terminal):
            show_line(self._err, f"error: {utterance.located_error(answer.error)}", "red")
        if utterance.is_turn and self._as_json:
            print(answer.to_json(), flush=True)
        elif utterance.is_turn:
            self._show_row(answer)

    def finish(self) -> None:
        """Print the notice about what a result means."""
        if self._last is not None:
            self._out.print(Text(NOTICE, "dim"), soft_wrap=True)

    def _show_row(self, answer: Answer) -> None:
        utterance, last = answer.utterance, self._last
        if last is None:
            head = _aligned("turn", Text("emotion"), "conf", "used", "ms", "speaker: text", self._width)
            self._out.print(head, soft_wrap=True)
        if self._has_headings and (last is None or utterance.source != last.source):
            if last is not None and (utterance.line, last.line) != (None, None):
                self._out.print()  # between dialogues; an audio file is named in its own row
            if utterance.line is not None:
                show_line(self._out, f"{utterance.source}:", "bold")
        self._last = utterance
        self._out.print(turn_row(answer, self._width), soft_wrap=True)


def shown_label(p: Prediction) -> Text:
    """The label in its colour, or a dash if the confidence is too low."""
    return Text(printable(p.label or "-"), style=f"bold {COLOURS.get(p.label or '', 'default')}")


def turn_row(answer: Answer, width: int | None) -> Text:
    """Format a turn as one line, with its warnings or error below.

    Args:
        answer: the turn's answer.
        width: columns of the terminal, to which the text is wrapped; None does not wrap it.
    """
    u, p = answer.utterance, answer.prediction
    audio = str(u.audio) if isinstance(u.audio, (str, os.PathLike)) else "-"
    text = u.text or ("" if u.audio is None else audio)
    speaker = p.speaker if p else u.speaker
    text = printable(f"{speaker}: {text}" if speaker else text)
    if p is None:
        row = _aligned("-", Text("-"), "-", "-", "-", text, width)
        line = "" if u.line is None else f"line {u.line}: "
        return row.append(_note(f"error: {line}{answer.error}", width), "red")
    cells = f"{p.confidence:.2f}", "+".join(p.modalities), f"{p.timing['total']:.0f}"
    row = _aligned(str(p.turn), shown_label(p), *cells, text, width)
    for warning in p.warnings:
        row.append(_note(f"note: {warning}", width), "dim")
    return row


def _aligned(turn: str, label: Text, conf: str, used: str, ms: str, text: str, width: int | None) -> Text:
    """Align the cells of a turn in columns; the text comes last, wrapped to the columns that are left."""
    row = Text.assemble(f"{turn:>4}  ", label, " " * (LABEL - label.cell_len), f"  {conf:>4}  ")
    if width is None or width >= MIN_FULL_WIDTH:
        row.append(f"{used:10}  {ms:>5}  ")
    if width is not None:
        lines = Text(text).wrap(screen(), max(width - row.cell_len, MIN_TEXT))
        text = ("\n" + " " * row.cell_len).join(line.plain.rstrip() for line in lines)
    row.append(text)
    row.rstrip()
    return row


def _note(text: str, width: int | None) -> str:
    """Format a note below a turn, on indented lines. Paths are not broken."""
    text = printable(text)
    room = len(text) or 1 if width is None else max(width - NOTE_INDENT, MIN_TEXT)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return "".join(f"\n{' ' * NOTE_INDENT}{line}" for line in lines)


def turn_bars(p: Prediction, text: str | None) -> RenderableType:
    """Format one turn: speaker, text, emotion, and a bar per label."""
    text = printable(text or "(no text)")
    head = Text.assemble((f"{printable(p.speaker or '?')}: ", "bold"), text, "  → ", shown_label(p))
    bars = Table.grid(padding=(0, 1))
    for label, probability in sorted(p.probabilities.items(), key=lambda pair: -pair[1]):
        full = "█" * round(probability * BAR)
        bar = Text(f"{full:{BAR}}", COLOURS.get(label, "default"))
        bars.add_row(Text(f"   {printable(label):9}"), bar, f"{probability:.2f}")
    notes = [Text(f"   note: {printable(warning)}", style="dim") for warning in p.warnings]
    return Group(head, bars, *notes)
