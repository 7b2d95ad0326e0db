"""Full-precision training of HBAF in PyTorch. The mathematics is in training/MODEL.md."""

from training.torchaudio_cpu import ensure_importable

ensure_importable()  # before anything imports transformers, which imports torchaudio wherever it finds it
