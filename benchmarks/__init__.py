"""One question per script; results go to benchmarks/results."""

import hbaf_edge  # noqa: F401 - first, since it turns ONNX Runtime's telemetry off
