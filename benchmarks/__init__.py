"""Benchmarks: each script answers one question; results are in benchmarks/results."""

import hbaf_edge  # noqa: F401 - imported first because it turns off ONNX Runtime's telemetry
