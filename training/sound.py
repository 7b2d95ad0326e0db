"""A clip on disk -> what an audio encoder in training hears: the runtime's own front end, plus mp4 (MELD.Raw)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hbaf_edge.audio import MAX_SECONDS, Audio, load_audio
from hbaf_edge.errors import InputError

CONTAINERS = (".mp4", ".m4a", ".mkv", ".mov")


def hear(path: Path | str) -> Audio:
    """Mono 16 kHz of a file, its last 20 s at most.

    Raises:
        InputError: for a file that holds no audio; the text says what is accepted.
    """
    path = Path(path)
    return _demux(path) if path.suffix.lower() in CONTAINERS else load_audio(path)


def _demux(path: Path) -> Audio:
    """The first audio stream of a video container, at its own sample rate; 20 s are kept while reading."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            rate, kept, total, length = int(stream.rate), [], 0, 0.0
            for frame in container.decode(stream):
                kept.append(_samples(frame))
                total += len(kept[-1])
                length += len(kept[-1]) / rate
                while total - len(kept[0]) > MAX_SECONDS * rate:
                    total -= len(kept.pop(0))
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read as audio ({error}); it needs one audio stream") from None
    if not kept:
        raise InputError(f"{path.name} has an audio stream without a sample in it")
    heard = load_audio(np.concatenate(kept), rate)
    return replace(heard, seconds=max(heard.seconds, length))


def _samples(frame: object) -> np.ndarray:
    """A decoded frame as (samples, channels) float32; planar layouts come as (channels, samples)."""
    import av

    assert isinstance(frame, av.AudioFrame)
    block = frame.to_ndarray()
    block = block.T if frame.format.is_planar else block.reshape(-1, len(frame.layout.channels))
    return block.astype(np.float32) * (1.0 if block.dtype.kind == "f" else 1.0 / np.iinfo(block.dtype).max)
