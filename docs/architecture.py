"""Draws docs/architecture.png from the code: the layers that CI holds, their modules and sizes, and a turn's way.

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
# A turn's way through `predict`, in order; each must be a module of the layer drawn.
WAY = ["runtime", "inputs", "calls", "engine", "backends.onnxruntime", "conversation"]
PLAIN, ON_THE_WAY, PACKAGE = "#eef1f5", "#dbe9f6", "#fde3c8"


def contract(name: str) -> list[list[str]]:
    """Layers of an import contract in pyproject.toml, top first, each with its modules."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = (c for c in contracts if c["name"] == name)
    return [[module.strip() for module in layer.split("|")] for layer in found["layers"]]


def lines(module: str) -> int:
    """Lines of a module or a package."""
    path = ROOT / module.replace(".", "/")
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return sum(len(file.read_text().splitlines()) for file in files)


def box(ax: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """A rounded box with text in its middle."""
    ax.add_patch(
        FancyBboxPatch((x, y), width, 0.62, boxstyle="round,pad=0.02,rounding_size=0.06", fc=colour, ec="#666")
    )
    ax.text(x + width / 2, y + 0.31, text, ha="center", va="center", fontsize=8.5)


def draw_packages(ax: Axes) -> None:
    """The five packages; each may import those below it."""
    layers = contract("Packages depend one way")
    for row, (package,) in enumerate(layers):
        box(ax, 0, -1.9 * row, 2.2, f"{package}/\n{lines(package):,} lines", PACKAGE)
        if row:
            arrow = FancyArrowPatch(
                (1.1, -1.9 * row + 1.9), (1.1, -1.9 * row + 0.66), arrowstyle="-|>", mutation_scale=12
            )
            ax.add_patch(arrow)
    ax.set_title("Packages import downwards", fontsize=11)
    ax.set_xlim(-0.2, 2.4)


def draw_runtime(ax: Axes) -> None:
    """The runtime's layers; numbers are the order in which a turn passes."""
    layers = contract("A turn passes the runtime's layers one way")
    for row, modules in enumerate(layers):
        width = 10 / len(modules)
        for column, module in enumerate(modules):
            name = module.removeprefix("hbaf_edge.")
            number = f"{WAY.index(name) + 1}  " if name in WAY else ""
            text = f"{number}{name}\n{lines(module):,}"
            box(ax, column * width, -0.8 * row, width - 0.12, text, ON_THE_WAY if number else PLAIN)
    drawn = {module.removeprefix("hbaf_edge.") for modules in layers for module in modules}
    if missing := set(WAY) - drawn:
        raise ValueError(f"no layer holds {sorted(missing)}; write WAY as pyproject.toml has the layers")
    ax.set_title("hbaf_edge: each layer imports those below; numbers are a turn's way, then lines", fontsize=11)
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
