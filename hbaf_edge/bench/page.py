"""A report as files: one HTML page that loads nothing, a picture for each figure, Markdown and JSON."""

from __future__ import annotations

import base64
import json
import tempfile
from html import escape
from pathlib import Path

from hbaf_edge.bench.document import Cell, Report, Section, about, cell_text, markdown
from hbaf_edge.bench.figures import check as drawable
from hbaf_edge.bench.figures import png
from hbaf_edge.card import NOTICE
from hbaf_edge.errors import InputError
from hbaf_edge.files import write_atomically

LONG = 18  # characters of a cell that may be broken
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:66rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}
.about{color:#666;font-size:.85rem}.text{color:#444;margin:.2rem 0 .8rem}
.bad{background:#fdecea;border-left:4px solid #c0392b;padding:.5rem .8rem;margin:.6rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .55rem;text-align:right;border-bottom:1px solid #e4e4e4;white-space:nowrap}
th:first-child,td:first-child{text-align:left;min-width:12rem}th{color:#555;font-weight:600;white-space:normal}
td:first-child,.long{white-space:normal}.long{text-align:left;min-width:11rem}
img{max-width:100%;margin:.5rem 0}
"""


def check(folder: Path) -> None:
    """Whether a report can be made there, before anything is measured for one.

    Raises:
        InputError: nothing can be written there.
        BackendError: matplotlib is not installed.
    """
    drawable()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"no report can be written to {folder} ({error.strerror}); give --report a folder of yours") \
            from None  # fmt: skip


def write(report: Report, folder: Path) -> Path:
    """report.json, report.md, a PNG for each figure and report.html; returns the page's path."""
    write_json(report, folder)  # first: a picture that cannot be drawn loses no figure
    _replace(folder / "report.md", markdown(report).encode())
    pictures = {s.name: png(s.figure) for s in report.sections if s.figure}
    for name, content in pictures.items():
        _replace(folder / f"{name}.png", content)
    _replace(folder / "report.html", html(report, pictures).encode())
    return folder / "report.html"


def write_json(report: Report, folder: Path) -> None:
    """report.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "report.json", (json.dumps(report.to_json(), indent=1) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all: an older report is not left half overwritten."""
    write_atomically(path, content, mode=0o644)


def html(report: Report, pictures: dict[str, bytes]) -> str:
    """The page; pictures lie inside of it."""
    parts = [f"<h1>{escape(report.title)}</h1>", f'<p class="about">{escape(about(report))}</p>']
    if report.stopped:
        parts.append(f'<p class="bad">Incomplete: {escape(report.stopped)}.</p>')
    parts += [f'<p class="bad">{escape(warning)}</p>' for warning in report.warnings]
    parts += [_section(s, pictures.get(s.name)) for s in report.sections]
    parts.append(f'<p class="about">{escape(NOTICE)}</p>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _section(section: Section, picture: bytes | None) -> str:
    head = "".join(f"<th>{escape(str(c))}</th>" for c in section.head)
    rows = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in section.rows)
    text = f'<p class="text">{escape(section.text)}</p>' if section.text else ""
    image = ""
    if picture is not None:
        encoded = base64.b64encode(picture).decode()
        image = f'<img alt="{escape(section.title)}" src="data:image/png;base64,{encoded}">'
    table = f'<div class="wide"><table><tr>{head}</tr>\n{rows}\n</table></div>' if section.rows else ""
    return f'<h2 id="{escape(section.name)}">{escape(section.title)}</h2>{text}{image}{table}'


def _cell(cell: Cell) -> str:
    text = cell_text(cell)
    return f'<td class="long">{escape(text)}</td>' if len(text) > LONG else f"<td>{escape(text)}</td>"
