"""What the INT8 tests share: the tiny model's small matrices count as large, and it is calibrated once."""

import pytest

from export.calibrate import calibrate
from export.verify import conversation
from hbaf_edge.bundle import load_bundle


@pytest.fixture
def small_counts(monkeypatch):
    for module in ("linears", "qdq"):
        monkeypatch.setattr(f"export.{module}.SMALLEST", 64)


@pytest.fixture
def talks():
    return [conversation(12, seed) for seed in range(3)]


@pytest.fixture
def calibrated(tiny, talks, small_counts, tmp_path):
    return calibrate(load_bundle(tiny.bundle), talks, tmp_path / "calibration.json", threads=1)
