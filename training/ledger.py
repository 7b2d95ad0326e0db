"""The ledger: one line of JSON for each time that test data were scored.

Test data say how good a finished model is, and say it honestly only if nothing was chosen by them. So every command
chooses on dev, and only these read test:

    python -m training.evaluate CHECKPOINT --final
    python -m export.score BUNDLE --final
    python -m export.voices --model BUNDLE --final
    python -m export.release CHECKPOINT --final ...
    python -m benchmarks.natural --final

Each appends to benchmarks/results/ledger.jsonl (or $HBAF_LEDGER): date, commit, command, the model's hash, the hash of
each test set, and the scores. docs/results.md shows all of them. A test set that a model was scored on before is not
scored again; the ledger's scores are used.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hbaf_edge.bench.document import command_here, commit_here
from training.errors import TrainingError
from training.files import CHECKOUT

Entry = dict[str, Any]  # date, commit, command, model, sha256, data, scores; see `score_once`


def ledger_path() -> Path:
    """File of the ledger: $HBAF_LEDGER, or benchmarks/results/ledger.jsonl."""
    return Path(os.environ.get("HBAF_LEDGER") or CHECKOUT / "benchmarks" / "results" / "ledger.jsonl")


def entries() -> list[Entry]:
    """All entries, the oldest first.

    Raises:
        TrainingError: a line is not an entry.
    """
    path, read = ledger_path(), []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            entry = json.loads(line)
            entry["date"], entry["sha256"], entry["data"], entry["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path}:{number} is not an entry of the ledger ({error}); restore the file from "
                                "version control") from error  # fmt: skip
        read.append(entry)
    return read


def score_once(
    model: str, sha256: str, data: dict[str, str], score: Callable[[list[str]], dict[str, Any]]
) -> dict[str, Any]:
    """Score a model on test sets and append the result; sets that it was scored on before are not scored again.

    Args:
        model: its name, for readers.
        sha256: hash of everything that its scores depend on.
        data: hash of each test set, by name.
        score: computes the scores of the named test sets; it is not called if all of them are in the ledger.

    Returns:
        scores by test set, as JSON has them.
    """
    before: dict[str, Any] = {}
    for entry in entries():
        if entry["sha256"] == sha256:
            known = {name: entry["scores"][name] for name in data if entry["data"].get(name) == data[name]}
            before = known | before
    missing = [name for name in data if name not in before]
    if before:
        print(f"scored before, the ledger's scores are used: {', '.join(before)}", file=sys.stderr)
    if missing:
        commit = commit_here()  # of the code that runs, whatever is committed meanwhile
        scores = json.loads(json.dumps(_rounded(score(missing))))
        entry = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit, "command": command_here(),
            "model": model, "sha256": sha256, "data": {name: data[name] for name in missing}, "scores": scores,
        }  # fmt: skip
        ledger_path().parent.mkdir(parents=True, exist_ok=True)
        with ledger_path().open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        before |= scores
    return {name: before[name] for name in data}


def scores_of(sha256: str) -> dict[str, Any]:
    """All scores of a model in the ledger, by test set; of two readings the first."""
    scores: dict[str, Any] = {}
    for entry in entries():
        if entry["sha256"] == sha256:
            scores = entry["scores"] | scores
    return scores


def _rounded(value: Any) -> Any:
    """Round all numbers to six decimals."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value
