"""Encoder states computed once and kept on the disk, so that a head trains on two CPU cores.

A cache is a folder `.cache/states/KEY`, KEY hashing the encoder's weights, the front end's version and settings. It
holds one file for each clip or text: its (frames, states, dim) states in float16. A file appears whole or not at all,
so a killed run loses what it was writing and nothing else, and several processes may fill one cache.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn

from hbaf_edge import audio as runtime_audio
from hbaf_edge import features as runtime_features
from hbaf_edge import mel
from hbaf_edge import text as runtime_text
from hbaf_edge.audio import load_audio
from training import augment, batches, encoders, hub
from training.batches import Tokens
from training.files import cache_folder

States = NDArray[np.float16]
Encode = Callable[[list[str]], Iterable[tuple[str, States]]]  # missing keys -> each with its states, in any order


class StateCache:
    """States by key: `cache[key]` is (frames, states, dim) float16, memory-mapped.

    Args:
        folder: where it lies; made if need be.
        shape: (states, dim).
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self.folder, self.shape = folder, shape

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def __getitem__(self, key: str) -> States:
        return np.memmap(self._path(key), np.float16, "c").reshape(-1, *self.shape)  # "r" would make torch warn

    def add(self, wanted: Sequence[str], encode: Encode, what: str) -> None:
        """Encode the keys that are not there yet, with a progress bar.

        Args:
            wanted: distinct keys.
            encode: what makes the states.
            what: shown beside the bar.
        """
        missing = [key for key in wanted if key not in self]
        if not missing:
            return
        console = Console(stderr=True)
        if len(missing) < len(wanted):
            console.print(f"{what}: {len(wanted) - len(missing)} of {len(wanted)} are cached already")
        for key, states in track(encode(missing), description=what, total=len(missing), console=console):
            path = self._path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            np.ascontiguousarray(states, np.float16).tofile(part)
            part.replace(path)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name[2:]


def digest(model: nn.Module) -> str:
    """SHA-256 over a model's parameters and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def front_end() -> str:
    """Hash of the code that makes the encoders' input: a cache must not outlive a change to it."""
    audio = sorted(Path(runtime_audio.__path__[0]).glob("*.py"))
    code = [path.read_text() for path in audio]
    code += [inspect.getsource(m) for m in (runtime_features, runtime_text, mel, augment, hub)]
    return hashlib.sha256("".join(code).encode()).hexdigest()


def cache_of(kind: str, encoder: nn.Module, shape: tuple[int, int]) -> StateCache:
    """The cache of this encoder's states, (states, dim) a frame."""
    name = hashlib.sha256(f"{kind} {digest(encoder)} {front_end()} {shape}".encode()).hexdigest()[:16]
    return StateCache(cache_folder() / "states" / f"{kind}-{name}", shape)


class AudioCache:
    """States of clips at 50 Hz, unpadded, at most 20 s each; and of `copies` augmented variants of each.

    Args:
        encoder: frozen.
        shape: (states, dim) of its states.
    """

    def __init__(self, encoder: nn.Module, shape: tuple[int, int]) -> None:
        self.encoder = encoder
        self.cache = cache_of("audio", encoder, shape)
        self._hash: dict[Path, str] = {}

    def fill(self, paths: Sequence[Path], copies: int = 0) -> AudioCache:
        """Encode what is not there yet: each clip, and variants of it augmented each by a seed of its own."""
        for path in paths:
            if path not in self._hash:
                self._hash[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        by_key = {self._key(path, copy): (path, copy) for path in paths for copy in range(copies + 1)}
        device = next(self.encoder.parameters()).device

        @torch.inference_mode()
        def encode(keys: list[str]) -> Iterator[tuple[str, States]]:
            for key in keys:
                prepared = cast(Any, self.encoder).prepare(self._samples(*by_key[key]))
                yield key, encoders.audio_states(self.encoder, prepared[None].to(device))[0].half().cpu().numpy()

        self.cache.add(list(by_key), encode, "audio states")
        return self

    def states(self, path: Path, copy: int = 0) -> States:
        """(frames, states, dim) of a clip or of one of its variants."""
        return self.cache[self._key(path, copy)]

    def __contains__(self, path: object) -> bool:
        return path in self._hash

    def _key(self, path: Path, copy: int) -> str:
        return f"{self._hash[path]}+{copy}"

    def _samples(self, path: Path, copy: int) -> torch.Tensor:
        samples = torch.from_numpy(load_audio(path).samples)
        if not copy:
            return samples
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self._hash[path][:8], 16) + copy)
            return augment.Augment()(samples)


def fill_texts(cache: StateCache, encoder: nn.Module, texts: Iterable[Tokens]) -> StateCache:
    """Encode the texts that are not there yet."""
    by_key = {t.key: t for t in texts}

    @torch.inference_mode()
    def states(keys: list[str]) -> Iterator[tuple[str, States]]:
        for place, found in batches.encode_texts(encoder, [by_key[k] for k in keys]):
            yield keys[place], found.half().cpu().numpy()

    cache.add(list(by_key), states, "text states")
    return cache
