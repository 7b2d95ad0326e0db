"""Samples without a header, as a microphone driver, a telephone line or a socket delivers them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import InputError

# FFmpeg's name -> libsndfile's subtype and byte order, and bytes per sample.
FORMATS = {
    "s8": ("PCM_S8", "LITTLE", 1),
    "u8": ("PCM_U8", "LITTLE", 1),
    "s16le": ("PCM_16", "LITTLE", 2),
    "s16be": ("PCM_16", "BIG", 2),
    "s24le": ("PCM_24", "LITTLE", 3),
    "s24be": ("PCM_24", "BIG", 3),
    "s32le": ("PCM_32", "LITTLE", 4),
    "s32be": ("PCM_32", "BIG", 4),
    "f32le": ("FLOAT", "LITTLE", 4),
    "f32be": ("FLOAT", "BIG", 4),
    "f64le": ("DOUBLE", "LITTLE", 8),
    "f64be": ("DOUBLE", "BIG", 8),
    "mulaw": ("ULAW", "LITTLE", 1),
    "alaw": ("ALAW", "LITTLE", 1),
}


def raw_options(sample_format: Any, rate: int, size: int, name: str) -> dict[str, Any]:
    """Arguments for `soundfile.SoundFile` to read mono samples without a header.

    Args:
        sample_format: one of `FORMATS`.
        rate: Hz.
        size: number of bytes, which must be a whole number of samples.
        name: name of the source in messages.

    >>> raw_options("s16le", 16_000, 320, "the audio")["subtype"]
    'PCM_16'
    """
    if not isinstance(sample_format, str) or sample_format not in FORMATS:
        raise InputError(
            f"sample_format={sample_format!r} is unknown; {', '.join(FORMATS)} are accepted (mono; for several "
            "channels pass a numpy array of shape (samples, channels))"
        )
    subtype, order, width = FORMATS[sample_format]
    if size % width:
        raise InputError(
            f"{name} has {size:,} bytes, which is not a whole number of {sample_format} samples of {width} bytes; "
            "check sample_format, and that the stream was cut between samples"
        )
    return {"samplerate": rate, "channels": 1, "format": "RAW", "subtype": subtype, "endian": order}


def decode_raw(data: bytes | bytearray | memoryview, sample_format: Any) -> NDArray[np.float32]:
    """Convert bytes without a header to (samples,) float32 in -1..1.

    >>> decode_raw(np.array([0, 16_384], "<i2").tobytes(), "s16le").tolist()
    [0.0, 0.5]
    """
    import io

    import soundfile

    data = bytes(data)
    options = raw_options(sample_format, 16_000, len(data), "the chunk")  # any rate: it does not change the samples
    if not data:
        return np.zeros(0, np.float32)
    with soundfile.SoundFile(io.BytesIO(data), **options) as file:
        return np.asarray(file.read(dtype="float32"))
