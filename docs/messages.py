"""Writes docs/messages.md: every error message of the runtime, read from its source.

python docs/messages.py

A value that a message contains is shown by its expression in braces. A test fails while the page is out of date.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
ERRORS = {
    "InputError": "The input or an argument cannot be used. The conversation is unchanged.",
    "BackendError": "The back end cannot run here, or failed. Nothing was committed.",
    "StateError": "A saved conversation cannot be written or read.",
    "BundleError": "A model cannot be loaded.",
}
HEAD = """# All error messages

Generated from the source by `python docs/messages.py`. Each message says what to do. Values are in braces. The common
ones, and what else goes wrong, are in [Troubleshooting](troubleshooting.md).
"""


def text_of(node: ast.expr) -> str | None:
    """A string or f-string as its source reads, with each value as `{expression}`; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else f"{{{_short(part)}}}" for part in node.values]
        return "".join(map(str, parts))
    return None


def _short(part: ast.expr) -> str:
    """An expression inside an f-string, cut where it is long."""
    source = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else ast.unparse(part)
    return source if len(source) <= 40 else "…"


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """Error class and message of every `raise` in a file whose message stands there."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            name, arguments = node.exc.func.id, node.exc.args
            if name in ERRORS and arguments and (text := text_of(arguments[0])):
                yield name, text


def page() -> str:
    """The page's content."""
    entries: dict[str, dict[str, None]] = {name: {} for name in ERRORS}
    for path in sorted((ROOT / "hbaf_edge").rglob("*.py")):
        for name, text in messages(path):
            entries[name][text] = None
    parts = [HEAD]
    for name, meaning in ERRORS.items():
        parts.append(f"\n## {name}\n\n{meaning}\n\n")
        parts += [f"- `{' '.join(text.split()).replace('`', chr(39))}`\n" for text in entries[name]]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
