"""A bundle that an earlier version wrote, its graphs rewritten (export/rewrite.py): the same weights, fewer operators.

    python -m export.renew runs/older/int8 --score --out runs/mine/int8

Both are run on the same random inputs, and nothing is written where they differ. With --score the new one is also run
on the test sets of DATA.md, beside the old one: its scores, and how many labels differ, go into manifest and card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import onnx

from export.command import run
from export.int8 import converted, fidelity
from export.place import check_place, workplace
from export.release import headline
from export.rewrite import fuse_attention, mix_layers
from export.score import score
from hbaf_edge.backend import INT8
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from training.evaluate import Trial, held_out

LEAST_DB = 30.0  # INT8 rounds what came out differently in the seventh digit to the next step now and then
MOST_FLIPS = 0.002


def renewed(bundle: Bundle, out: Path, about: dict[str, Any] | None = None) -> dict[str, float]:
    """A bundle of an earlier version again, rewritten, with `about` in place of what its manifest said of them.

    Returns:
        signal-to-noise ratios of the graphs that changed, dB, on random inputs.

    Raises:
        SystemExit: a graph's outputs are no longer the same, or nothing is to be done.
    """
    integers = bundle.manifest["precision"] == INT8
    files = {graph: onnx.load_from_string(bundle.graph(graph)) for graph in GRAPHS}
    mixed = {graph: mix_layers(file) for graph, file in files.items()}
    made = {graph: fuse_attention(file) for graph, file in mixed.items()} if integers else mixed
    ratios = {
        graph: round(fidelity(files[graph], made[graph], integers=integers), 1)
        for graph in GRAPHS if made[graph] != files[graph]
    }  # fmt: skip
    if not ratios:
        raise SystemExit(f"{bundle.path}: there is nothing to rewrite; nothing was written")
    for graph, ratio in ratios.items():
        if ratio < LEAST_DB:
            raise SystemExit(f"{graph}: its outputs keep {ratio} dB of at least {LEAST_DB}; nothing was written")
    converted(bundle, out, lambda graph, _: made[graph], about or {})
    return ratios


def scored(new: Path, old: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Entries of the manifest: what a renewed bundle scores; its distance from float32 stays what the old one's was."""
    measured = score(new, {name: Trial(*pair) for name, pair in held_out().items()}, old)
    drift = measured.pop("against_float32")
    if drift["flip_rate"] > MOST_FLIPS:
        raise SystemExit(f"{drift['label_flips']} of {drift['turns']} labels differ; at most {MOST_FLIPS:.1%} may")
    differ = f"{drift['label_flips']} of {drift['turns']} labels differ ({drift['flip_rate']:.2%})"
    earlier = {"against_float32": known["against_float32"]}
    shown = headline({**measured, **earlier})
    shown["against float32, before its graphs were rewritten"] = shown.pop("against float32")
    shown["against what it was before"] = differ
    return {"scores": {**measured, "against_float32_before_rewriting": known["against_float32"]}, "headline": shown}


def noted(parity: list[dict[str, Any]], precision: str) -> list[dict[str, Any]]:
    """Rows of the parity chain, of which the bundle's own is of what it was before."""
    return [{**row, "name": f"{row['name']} (before its graphs were rewritten)"} if row["name"] == precision else row
            for row in parity]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of an earlier version")
    parser.add_argument("--score", action="store_true", help="on the test sets of DATA.md")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    check_place(given.out)
    bundle = load_bundle(given.bundle)
    known = bundle.manifest.get("scores", {})
    if given.score and "against_float32" not in known:
        raise SystemExit(f"{given.bundle} does not say how far it is from float32; leave --score out")
    about: dict[str, Any] = {}
    if "parity" in bundle.manifest:
        about["parity"] = noted(bundle.manifest["parity"], bundle.manifest["precision"])
    if given.score:
        with workplace(given.out) as folder:
            renewed(bundle, Path(folder) / "bundle")
            about |= scored(Path(folder) / "bundle", given.bundle, known)
    print(json.dumps({"out": str(given.out), "db": renewed(bundle, given.out, about)}))


if __name__ == "__main__":
    run(main)
