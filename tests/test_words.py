"""Identifiers are named after what they are: vague participles such as `found` or `given` stay rare."""

import ast
import re
from collections import Counter

from tests.conftest import ROOT

VAGUE = {"found", "given", "made", "kept", "held", "heard", "said", "beside", "judge"}
MOST = 30  # in all files together
FOLDERS = ("hbaf_edge", "kernels", "training", "export", "benchmarks", "tests", "docs")


def identifiers(tree):
    """Yield every name of a module: variables, arguments, attributes, functions, classes, keywords and imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield node.arg or ""  # None in f(**arguments)
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.ExceptHandler):
            yield node.name or ""
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.rpartition(".")[2]


def parts_of(name):
    """Return the lower-case words of a snake_case or CamelCase name.

    >>> sorted(parts_of("HeldOut_set"))
    ['held', 'out', 'set']
    """
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def vague_names(source):
    """Return the names of a source text that have a vague part, without those imported from Hypothesis."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "hypothesis"]
    foreign = {alias.name for node in imports for alias in node.names}
    return [name for name in identifiers(tree) if name not in foreign and VAGUE & parts_of(name)]


def test_a_vague_part_of_a_name_is_detected():
    source = "from hypothesis import given\n@given\ndef found_files(held=1): x.made = f(kept_rows=y)\nfounder = HeldOut"
    assert sorted(vague_names(source)) == ["HeldOut", "found_files", "held", "kept_rows", "made"]


def test_few_identifiers_are_vague():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    names = {str(path.relative_to(ROOT)): vague_names(path.read_text(encoding="utf-8")) for path in files}
    total = sum(map(len, names.values()))
    worst = sorted(((file, Counter(vague)) for file, vague in names.items() if vague), key=lambda x: -x[1].total())
    lines = [f"{file}: {dict(vague)}" for file, vague in worst[:15]]
    assert total <= MOST, f"{total} vague identifiers, at most {MOST} are allowed\n" + "\n".join(lines)
