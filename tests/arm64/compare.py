"""Compare what turns.py wrote on two architectures: labels must be the same but for ties, every probability close.

    python tests/arm64/compare.py .cache/arm64/arm64.json .cache/arm64/x86_64.json [--save]

The exit code is 1 if a label differs that was no tie, or a probability by more than BOUND. All differences are told.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "benchmarks" / "results" / "arm64.json"

# INT8 activations are rounded to 256 steps, so a last-bit difference of a float kernel can move a value by a whole
# step. Measured on these turns: up to .021 between two versions of ONNX Runtime on one x86 processor, .008 between Arm
# and x86 with the same version (.019 and .013 on MELD dev and RAVDESS). Quantization itself moves a probability by up
# to .14 (benchmarks/results/parity-default.json). The bound lies between rounding and a wrong kernel.
BOUND = 0.05
TIE = 0.025  # between the two likeliest labels: as close as versions of ONNX Runtime on one processor move them apart


def compare(arm: dict[str, Any], x86: dict[str, Any]) -> dict[str, Any]:
    """Differences between two results of turns.py over the same turns.

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
    """Of a label's probability, between two predictions of one turn."""
    return max(abs(a["probabilities"][label] - b["probabilities"][label]) for label in b["probabilities"])


def margin(turn: dict[str, Any]) -> float:
    """Between the two likeliest labels.

    >>> margin({"probabilities": {"joy": 0.5, "anger": 0.25, "fear": 0.25}})
    0.25
    """
    second, first = sorted(turn["probabilities"].values())[-2:]
    return float(first - second)


def is_passed(result: dict[str, Any]) -> bool:
    """Whether only ties differ, and nothing by more than rounding explains."""
    return result["largest_difference"] <= BOUND and all(d["margin"] <= TIE for d in result["labels_differing"])


def report(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['turns']} turns, {result['turns_with_audio']} of them with audio ({result['material']} material)"
    ]
    lines += [f"  {name}: {result[name]}" for name in ("arm64", "x86_64")]
    lines.append(f"labels differing: {len(result['labels_differing'])}")
    lines += [f"  {differing}" for differing in result["labels_differing"]]
    lines.append(f"difference of a probability: {result['largest_difference']:.4f} at most (bound {BOUND}), median "
                 f"{result['median_difference']:.4f}")  # fmt: skip
    lines.append("Versions of ONNX Runtime may differ, too. Emulation proves results; it says nothing of speed.")
    return "\n".join(lines)


def save(result: dict[str, Any]) -> None:
    """To benchmarks/results, with the day and the commit it belongs to."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    dated = {"date": datetime.now(timezone.utc).date().isoformat(), "commit": commit or None, **result}
    SAVED.write_text(json.dumps(dated, indent=1) + "\n")
    print(f"saved {SAVED.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm64", type=Path)
    parser.add_argument("x86_64", type=Path)
    parser.add_argument("--save", action="store_true", help=f"write {SAVED.relative_to(ROOT)}")
    options = parser.parse_args()
    result = compare(json.loads(options.arm64.read_text()), json.loads(options.x86_64.read_text()))
    print(report(result))
    passed = is_passed(result)
    if options.save:
        save(result)
    print("arm64: passed" if passed else "arm64: FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
