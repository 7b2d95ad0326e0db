"""Compare the predictions of turns.py on two architectures.

    python tests/arm64/compare.py .cache/arm64/arm64.json .cache/arm64/x86_64.json [--save]

Prints all differences. The exit code is 1 if a probability differs by more than BOUND, or a label differs although its
margin is larger than TIE.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hbaf_edge.bench.document import Report, Section

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "benchmarks" / "results" / "arm64.json"

# INT8 activations are rounded to 256 steps, so a last-bit difference in a float kernel can change a value by a complete
# step. Measured on these turns: up to .021 between two versions of ONNX Runtime on one x86 processor, .008 between Arm
# and x86 with the same version (.019 and .013 on MELD dev and RAVDESS). The bound lies between
# rounding and the error of a wrong kernel.
BOUND = 0.05
TIE = 0.025  # margin between the two likeliest labels that another version of ONNX Runtime can reverse


def compare(arm: dict[str, Any], x86: dict[str, Any]) -> dict[str, Any]:
    """Compute the differences between two results of turns.py on the same turns.

    >>> def result(joy, label):
    ...     turn = {"label": label, "modalities": ["text"], "probabilities": {"joy": joy, "anger": 1 - joy}}
    ...     return {"bundle": "ab", "material": "committed", "machine": {}, "turns": [turn]}
    >>> compare(result(0.49, "anger"), result(0.52, "joy"))["labels_differing"]
    [{'turn': 0, 'arm64': 'anger', 'x86_64': 'joy', 'difference': 0.03, 'margin': 0.04}]
    """
    for field in ("bundle", "material"):
        if arm[field] != x86[field]:
            raise SystemExit(f"the two results are of different {field}: {arm[field]} and {x86[field]}; run both again")
    pairs = list(zip(arm["turns"], x86["turns"], strict=True))
    differences = [largest_difference(a, x) for a, x in pairs]
    differing = [
        {"turn": i, "arm64": a["label"], "x86_64": x["label"], "difference": round(differences[i], 5),
         "margin": round(margin(x), 5)} for i, (a, x) in enumerate(pairs) if a["label"] != x["label"]
    ]  # fmt: skip
    return {
        "turns": len(pairs),
        "turns_with_audio": sum("audio" in x["modalities"] for _, x in pairs),
        "labels_differing": differing,
        "largest_difference": round(max(differences), 5),
        "median_difference": round(float(np.median(differences)), 5),
        "bound": BOUND,
        "material": x86["material"],
        "bundle": x86["bundle"],
        "arm64": arm["machine"],
        "x86_64": x86["machine"],
    }


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the largest difference of a label's probability between two predictions of one turn."""
    return max(abs(a["probabilities"][label] - b["probabilities"][label]) for label in b["probabilities"])


def margin(turn: dict[str, Any]) -> float:
    """Return the difference between the probabilities of the two likeliest labels.

    >>> margin({"probabilities": {"joy": 0.5, "anger": 0.25, "fear": 0.25}})
    0.25
    """
    second, first = sorted(turn["probabilities"].values())[-2:]
    return float(first - second)


def meets_bounds(result: dict[str, Any]) -> bool:
    """Return whether only ties have different labels and no probability differs by more than `BOUND`."""
    return result["largest_difference"] <= BOUND and all(d["margin"] <= TIE for d in result["labels_differing"])


def report(result: dict[str, Any]) -> str:
    """Format the result for people."""
    lines = [
        f"{result['turns']} turns, {result['turns_with_audio']} of them with audio ({result['material']} material)"
    ]
    for name in ("arm64", "x86_64"):
        versions = [f"{key} {value}" for key, value in result[name].items() if value is not None]
        lines.append(f"  {name}: {', '.join(versions)}")
    lines.append(f"turns with different labels: {len(result['labels_differing'])}")
    lines += [f"  turn {d['turn']}: {d['arm64']} on arm64, {d['x86_64']} on x86_64, margin {d['margin']}"
              for d in result["labels_differing"]]  # fmt: skip
    lines.append(f"difference of a probability: at most {result['largest_difference']:.4f} (bound {BOUND}), median "
                 f"{result['median_difference']:.4f}")  # fmt: skip
    lines.append("ONNX Runtime's versions can differ as well. Emulation checks results, not speed.")
    return "\n".join(lines)


def save(result: dict[str, Any]) -> None:
    """Write the result as a report (hbaf_edge/bench/schema.json) to benchmarks/results."""
    rows: list[tuple[str, Any]] = [
        ("turns", result["turns"]),
        ("turns with audio", result["turns_with_audio"]),
        ("turns with different labels", len(result["labels_differing"])),
        ("largest difference of a probability", result["largest_difference"]),
        ("median difference of a probability", result["median_difference"]),
        ("bound", result["bound"]),
    ]
    title = "Emulated 64-bit Arm compared with this machine"
    section = Section("arm64", title, ("what", "value"), rows, f"Material: {result['material']}.")
    new = Report(title, {"arm64": result["arm64"]}, result["x86_64"], [section], bundle=result["bundle"])
    new.command = "make arm64 ARM64=--save"
    SAVED.write_text(json.dumps(new.to_json(), indent=1) + "\n")
    print(f"saved {SAVED.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm64", type=Path)
    parser.add_argument("x86_64", type=Path)
    parser.add_argument("--save", action="store_true", help=f"write {SAVED.relative_to(ROOT)}")
    options = parser.parse_args()
    result = compare(json.loads(options.arm64.read_text()), json.loads(options.x86_64.read_text()))
    print(report(result))
    if options.save:
        save(result)
    has_passed = meets_bounds(result)
    print("arm64: passed" if has_passed else "arm64: FAILED")
    return 0 if has_passed else 1


if __name__ == "__main__":
    sys.exit(main())
