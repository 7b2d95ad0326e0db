"""torchaudio with a CPU build of torch."""

import torch

from training.torchaudio_cpu import ensure_importable


def test_transforms_work_without_the_compiled_library():
    assert ensure_importable()
    import torchaudio

    mel = torchaudio.transforms.MelSpectrogram(16_000, n_mels=40)(torch.randn(1, 16_000))
    assert mel.shape[1] == 40
    assert torchaudio.transforms.Resample(16_000, 8_000)(torch.randn(1, 16_000)).shape == (1, 8_000)
    from transformers import BertModel

    assert BertModel is not None
