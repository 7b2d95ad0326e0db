"""The ledger: one line of JSON for each time that test data were scored.

Test data say how good a finished model is, and say it honestly only if nothing was chosen by them. So every command
chooses on dev, and only `--final` reads test:

    python -m training.evaluate CHECKPOINT --final
    python -m export.score BUNDLE --final
    python -m export.release CHECKPOINT --final ...

Each appends to benchmarks/results/ledger.jsonl (or $HBAF_LEDGER): date, commit, command, the model's hash, the hash of
the test data, and the scores. docs/results.md shows all of them. A model that was scored on the same data before is
not scored again; its entry is returned.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hbaf_edge.bench.document import command_here, commit_here
from hbaf_edge.bundle import Bundle
from training.errors import TrainingError
from training.files import CHECKOUT, write

Entry = dict[str, Any]  # date, commit, command, model, sha256, data, scores; see `score_once`


def ledger_path() -> Path:
    """File of the ledger: $HBAF_LEDGER, or benchmarks/results/ledger.jsonl."""
    return Path(os.environ.get("HBAF_LEDGER") or CHECKOUT / "benchmarks" / "results" / "ledger.jsonl")


def entries(path: Path | None = None) -> list[Entry]:
    """All entries, the oldest first.

    Raises:
        TrainingError: a line is not an entry.
    """
    path = path or ledger_path()
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        read = [json.loads(line) for line in lines]
        for entry in read:
            entry["date"], entry["sha256"], entry["data"], entry["scores"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: line {len(lines)} or an earlier one is not an entry ({error}); restore the file "
                            "from version control") from error  # fmt: skip
    return read


def score_once(model: str, sha256: str, data: dict[str, str], score: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Score a model on test data and append the result; return the earlier result if there is one.

    Args:
        model: its name, for readers.
        sha256: hash of its weights.
        data: hash of each test set, by name.
        score: computes the scores by test set; called at most once.

    Returns:
        the scores as JSON has them.
    """
    for entry in entries():
        if entry["sha256"] == sha256 and entry["data"] == data:
            print(f"already scored on these test data on {entry['date'][:10]}; the ledger's scores are used",
                  file=sys.stderr)  # fmt: skip
            return dict(entry["scores"])
    commit = commit_here()  # of the code that runs, whatever is committed meanwhile
    scores = json.loads(json.dumps(_rounded(score())))
    entry = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit, "command": command_here(),
        "model": model, "sha256": sha256, "data": data, "scores": scores,
    }  # fmt: skip
    path = ledger_path()
    before = path.read_bytes() if path.exists() else b""
    write(path, before + (json.dumps(entry) + "\n").encode())
    return dict(scores)


def scores_of(sha256: str) -> dict[str, Any]:
    """All scores of a model in the ledger, by test set."""
    return {name: s for entry in entries() if entry["sha256"] == sha256 for name, s in entry["scores"].items()}


def bundle_hash(bundle: Bundle) -> str:
    """SHA-256 of a bundle's graphs and tokeniser. Unlike its key, it does not change with the card and its scores."""
    sha256 = hashlib.sha256()
    for name in sorted(bundle.files):
        if name.endswith(".onnx") or name == "tokenizer.json":
            sha256.update(name.encode() + hashlib.sha256(bundle.files[name]).digest())
    return sha256.hexdigest()


def _rounded(value: Any) -> Any:
    """Round all numbers to six decimals."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value
