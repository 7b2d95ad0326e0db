"""Encoder states computed once and memory-mapped, so that a head trains on two CPU cores.

A cache is three files in `.cache/states/KEY`: states.npy (all frames, states, dim) float16, ends.npy, and keys.json.
KEY hashes the encoder's weights, the version of the front end and what was encoded (texts; clips by path and size); a
cache appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import nn
from transformers import BertModel

from hbaf_edge import __version__
from hbaf_edge.audio import load_audio
from hbaf_edge.features import Tokeniser, log_mel, normalise_text
from training.encoders import audio_states, cache_folder, text_states


class StateCache:
    """States by key (a text, or a clip's path): `cache[key]` is (frames, states, dim) float16, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._states = np.load(folder / "states.npy", mmap_mode="r")
        ends = np.load(folder / "ends.npy").tolist()
        keys = json.loads((folder / "keys.json").read_text())
        self._span = dict(zip(keys, zip([0, *ends[:-1]], ends)))

    def __getitem__(self, key: str) -> NDArray[np.float16]:
        start, end = self._span[key]
        return self._states[start:end]


def digest(model: nn.Module) -> str:
    """SHA-256 over a model's parameters and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def build(
    keys: Sequence[str], encode: Callable[[str], NDArray[np.float16]], settings: str, what: str, mark: str = ""
) -> StateCache:
    """Encode every key once, or open what an earlier run encoded.

    Args:
        keys: distinct texts or paths.
        encode: key -> (frames, states, dim).
        settings: everything besides the keys that changes the states.
        what: shown beside the progress bar.
        mark: further content that is hashed, such as the clips' sizes.
    """
    name = hashlib.sha256("\n".join([settings, __version__, mark, *keys]).encode()).hexdigest()[:16]
    folder = cache_folder() / "states" / name
    if not (folder / "keys.json").exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        parts = [encode(key) for key in track(keys, description=what)]
        np.save(partial / "ends.npy", np.cumsum([len(part) for part in parts]))
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        states = np.lib.format.open_memmap(partial / "states.npy", "w+", np.float16, shape)
        np.concatenate(parts, out=states)
        states.flush()
        (partial / "keys.json").write_text(json.dumps(list(keys)))
        partial.rename(folder)
    return StateCache(folder)


def audio_cache(paths: Sequence[Path], encoder: nn.Module) -> StateCache:
    """States of clips at 50 Hz, unpadded, at most 20 s each."""

    @torch.inference_mode()
    def encode(path: str) -> NDArray[np.float16]:
        mel = torch.from_numpy(log_mel(load_audio(path).samples))
        return audio_states(encoder, mel[None])[0].half().numpy()

    sizes = ",".join(str(path.stat().st_size) for path in paths)
    return build([str(p) for p in paths], encode, "audio " + digest(encoder), "audio states", sizes)


def text_cache(texts: Sequence[str], encoder: BertModel, tokeniser: Tokeniser) -> StateCache:
    """States of normalised texts, at most 64 tokens each. Empty texts are left out."""

    @torch.inference_mode()
    def encode(text: str) -> NDArray[np.float16]:
        ids, _ = tokeniser(text)
        tokens = torch.from_numpy(ids)[None]
        return text_states(encoder, tokens, torch.ones_like(tokens, dtype=torch.bool))[0].half().numpy()

    distinct = sorted({t for t in map(normalise_text, texts) if t})
    return build(distinct, encode, "text " + digest(encoder), "text states")
