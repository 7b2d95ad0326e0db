"""Full-precision training of HBAF in PyTorch. The mathematics is in docs/model.md."""

import hbaf_edge  # noqa: F401 - first, since it turns ONNX Runtime's telemetry off
from training.torchaudio_cpu import ensure_importable

ensure_importable()  # before anything imports transformers, which imports torchaudio wherever it finds it
