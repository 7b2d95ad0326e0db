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


def text_of(node: ast.expr, constants: dict[str, str]) -> str | None:
    """A string, f-string or constant as a user reads it, with each value as `{expression}`; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.JoinedStr):
        return "".join(_part(part, constants) for part in node.values)
    return None


def _part(part: ast.expr, constants: dict[str, str]) -> str:
    """One part of an f-string: its text, the text of a constant, or the expression in braces, cut where it is long."""
    if isinstance(part, ast.FormattedValue):
        if (text := text_of(part.value, constants)) is not None:
            return text
        source = ast.unparse(part.value)
        return f"{{{source}}}" if len(source) <= 40 else "{…}"
    return text_of(part, constants) or ""


def constants_of(tree: ast.Module) -> dict[str, str]:
    """The string constants that a module defines at its top, by name."""
    constants: dict[str, str] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and (text := text_of(node.value, constants)) is not None:
            constants[target.id] = text
    return constants


def messages(path: Path, constants: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Error class and message of every error that a file makes with a message of its own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_error = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
        if is_error and node.args and (text := text_of(node.args[0], constants)):
            yield node.func.id, text


def page() -> str:
    """The page's content."""
    entries: dict[str, dict[str, None]] = {name: {} for name in ERRORS}
    files = sorted((ROOT / "hbaf_edge").rglob("*.py"))
    constants: dict[str, str] = {}
    for path in files:
        constants |= constants_of(ast.parse(path.read_text(encoding="utf-8")))
    for path in files:
        for name, text in messages(path, constants):
            entries[name][text] = None
    parts = [HEAD]
    for name, meaning in ERRORS.items():
        parts.append(f"\n## {name}\n\n{meaning}\n\n")
        parts += [f"- `{' '.join(text.split()).replace('`', chr(39))}`\n" for text in entries[name]]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
