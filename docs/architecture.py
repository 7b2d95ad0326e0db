"""Draw docs/architecture.png from the code: packages, layers of the runtime, modules and their sizes.

python docs/architecture.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # installed with import-linter

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_suffix(".png")
# Modules that a turn passes in `predict`, in this order. Each must be in a layer of pyproject.toml.
PATH_OF_A_TURN = ["runtime", "inputs", "calls", "engine", "backends.onnxruntime", "conversation"]
PLAIN, ON_PATH, PACKAGE = "#eef1f5", "#dbe9f6", "#fde3c8"


def contract(name: str) -> list[list[str]]:
    """Return the layers of an import contract in pyproject.toml from top to bottom, each with its modules."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (match,) = (c for c in contracts if c["name"] == name)
    return [[module.strip() for module in layer.split("|")] for layer in match["layers"]]


def count_lines(module: str) -> int:
    """Return the number of lines of a module or a package."""
    path = ROOT / module.replace(".", "/")
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return sum(len(file.read_text().splitlines()) for file in files)


def draw_box(ax: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """Draw a rounded box with text in its centre."""
    ax.add_patch(
        FancyBboxPatch((x, y), width, 0.62, boxstyle="round,pad=0.02,rounding_size=0.06", fc=colour, ec="#666")
    )
    ax.text(x + width / 2, y + 0.31, text, ha="center", va="center", fontsize=8.5)


def draw_packages(ax: Axes) -> None:
    """Draw the five packages; each may import those below it."""
    layers = contract("Packages depend one way")
    for row, (package,) in enumerate(layers):
        draw_box(ax, 0, -1.9 * row, 2.2, f"{package}/\n{count_lines(package):,} lines", PACKAGE)
        if row:
            arrow = FancyArrowPatch(
                (1.1, -1.9 * row + 1.9), (1.1, -1.9 * row + 0.66), arrowstyle="-|>", mutation_scale=12
            )
            ax.add_patch(arrow)
    ax.set_title("Packages import downwards", fontsize=11)
    ax.set_xlim(-0.2, 2.4)


def draw_runtime(ax: Axes) -> None:
    """Draw the layers of the runtime and number the modules in the order in which a turn passes them."""
    layers = contract("A turn passes the runtime's layers one way")
    for row, modules in enumerate(layers):
        width = 10 / len(modules)
        for column, module in enumerate(modules):
            name = module.removeprefix("hbaf_edge.")
            number = f"{PATH_OF_A_TURN.index(name) + 1}  " if name in PATH_OF_A_TURN else ""
            text = f"{number}{name}\n{count_lines(module):,}"
            draw_box(ax, column * width, -0.8 * row, width - 0.12, text, ON_PATH if number else PLAIN)
    names = {module.removeprefix("hbaf_edge.") for modules in layers for module in modules}
    if missing := set(PATH_OF_A_TURN) - names:
        raise ValueError(f"no layer in pyproject.toml contains {sorted(missing)}; correct PATH_OF_A_TURN")
    ax.set_title("hbaf_edge: layers import downwards; numbers: order of the modules in a turn, and lines", fontsize=11)
    ax.set_xlim(-0.1, 10)
    ax.set_ylim(-0.8 * len(layers) + 0.7, 0.8)


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 7), width_ratios=[1, 4.4], layout="constrained")
    draw_packages(left)
    draw_runtime(right)
    left.set_ylim(-7.8, 0.8)
    for ax in (left, right):
        ax.axis("off")
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


if __name__ == "__main__":
    main()
