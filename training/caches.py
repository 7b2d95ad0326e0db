"""Encoder states computed once and memory-mapped, so that a head trains on two CPU cores.

A cache is a folder `.cache/states/KEY`, KEY hashing the encoder's weights, the front end's version and settings:

    states.bin     float16, every clip's or text's (frames, states, dim) one after another
    index.jsonl    one line for each: its own hash (of the clip's bytes, or of the tokens) and its frames

Both only grow. A killed run loses what it was writing and nothing else: the next one goes on behind the last line.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn

from hbaf_edge import audio as runtime_audio
from hbaf_edge import features as runtime_features
from hbaf_edge import mel
from hbaf_edge import text as runtime_text
from hbaf_edge.audio import load_audio
from training import augment, encode, encoders, hub
from training.files import cache_folder
from training.words import Tokens

States = NDArray[np.float16]
Encode = Callable[[list[str]], Iterable[tuple[str, States]]]  # missing keys -> each with its states, in any order
FLUSH = 64  # entries between two flushes: what a killed run may lose


class StateCache:
    """States by key: `cache[key]` is (frames, states, dim) float16, memory-mapped.

    Args:
        folder: where it lies; made if need be.
        shape: (states, dim).
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape = folder, shape
        self._span: dict[str, tuple[int, int]] = {}
        self._states: NDArray[np.float16] | None = None
        self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._span

    def __getitem__(self, key: str) -> States:
        start, end = self._span[key]
        assert self._states is not None
        return self._states[start:end]

    def add(self, wanted: Sequence[str], encode: Encode, what: str) -> None:
        """Encode the keys that are not there yet, with a progress bar.

        Args:
            wanted: distinct keys.
            encode: what makes the states.
            what: shown beside the bar.
        """
        with FileLock(self.folder / "lock"):
            self._mend()
            self._read()  # another process may have gone on meanwhile
            missing = [key for key in wanted if key not in self._span]
            if not missing:
                return
            if len(missing) < len(wanted):
                Console(stderr=True).print(f"{what}: {len(wanted) - len(missing)} of {len(wanted)} are cached already")
            with (self.folder / "states.bin").open("ab") as states, (self.folder / "index.jsonl").open("a") as index:
                pairs = track(encode(missing), description=what, total=len(missing), console=Console(stderr=True))
                self._write(pairs, states, index)
            self._read()

    def _write(self, pairs: Iterable[tuple[str, States]], states: IO[bytes], index: IO[str]) -> None:
        """States first, then their line: a line never promises what is not on the disk."""
        lines: list[str] = []
        for key, found in pairs:
            states.write(np.ascontiguousarray(found, np.float16).tobytes())
            lines.append(json.dumps([key, len(found)]) + "\n")
            if len(lines) == FLUSH:
                states.flush()
                index.writelines(lines)
                index.flush()
                lines = []
        states.flush()
        index.writelines(lines)

    def _mend(self) -> None:
        """Cut off what a killed run left without its line; under the lock, since a living one may be writing."""
        path, index = self.folder / "states.bin", self.folder / "index.jsonl"
        if not index.exists():
            path.unlink(missing_ok=True)
            return
        lines = index.read_bytes()
        whole = lines[: lines.rfind(b"\n") + 1]
        if len(whole) < len(lines):
            index.write_bytes(whole)
        frames = sum(count for _, count in map(json.loads, whole.splitlines()))
        with path.open("r+b") as file:
            file.truncate(2 * int(np.prod(self.shape)) * frames)

    def _read(self) -> None:
        """Map what the index promises; a line that is still being written is left for later."""
        index = self.folder / "index.jsonl"
        lines = index.read_bytes() if index.exists() else b""
        end, spans = 0, {}
        for key, frames in map(json.loads, lines[: lines.rfind(b"\n") + 1].splitlines()):
            spans[key] = (end, end + frames)
            end += frames
        self._span = spans
        if end:
            self._states = np.memmap(self.folder / "states.bin", np.float16, "r", shape=(end, *self.shape))


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


def folder_of(kind: str, encoder: nn.Module, shape: tuple[int, int]) -> Path:
    """Where states of this encoder lie."""
    name = hashlib.sha256(f"{kind} {digest(encoder)} {front_end()} {shape}".encode()).hexdigest()[:16]
    return cache_folder() / "states" / f"{kind}-{name}"


class AudioCache:
    """States of clips at 50 Hz, unpadded, at most 20 s each; and of `copies` augmented variants of each.

    Args:
        encoder: frozen.
        shape: (states, dim) of its states.
    """

    def __init__(self, encoder: nn.Module, shape: tuple[int, int]) -> None:
        self.encoder = encoder
        self.cache = StateCache(folder_of("audio", encoder, shape), shape)
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
        for place, found in encode.texts(encoder, [by_key[k] for k in keys]):
            yield keys[place], found.half().cpu().numpy()

    cache.add(list(by_key), states, "text states")
    return cache
