"""How much of the encoders' uneven scale should go into the weights? INT8 against float32 on dev, one row a strength.

    python -m benchmarks.migration FLOAT32 --calibration FILE --save     # a bundle; needs the corpora of its model

Strength 0 leaves all scale in the activations (export/migrate.py). The default was chosen by this table: the flips and
the divergence decide, since weighted F1 moves by chance more than it differs. The last line is JSON.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.report import finish, show
from export.calibrate import load
from export.quantize import HELD
from export.sensitivity import add_arguments, held_out, recipe_of
from hbaf_edge.bundle import load_bundle
from hbaf_edge.machine import machine

STRENGTHS = (0.0, 0.5, 0.75, 0.8, 0.85, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(turns=HELD)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    calibration = load(given.calibration, bundle)
    held, data = held_out(given, bundle)
    costs = []
    for strength in STRENGTHS:
        recipe = replace(recipe_of(given), migration=strength)
        costs.append(held.cost(calibration, recipe, f"{strength:g}"))
        print(asdict(costs[-1]), flush=True)
    rows = [
        (c.block, f"{c.f1_drop:+.4f}", f"{c.flip_rate:.2%}", f"{c.kl_divergence:.5f}", f"{c.cosine:.5f}",
         f"{c.snr_db:.1f}") for c in costs
    ]  # fmt: skip
    head = ("strength", "weighted F1 lost", "labels flipped", "KL divergence", "cosine", "SNR, dB")
    show(f"scale migration, {given.profile}, {data['turns']} dev turns", rows, head)
    found = {c.block: {k: v for k, v in asdict(c).items() if k != "block"} for c in costs}
    finish("migration", {"machine": machine(), "data": data, "strengths": found}, given.save)


if __name__ == "__main__":
    main()
