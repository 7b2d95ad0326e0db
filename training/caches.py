"""A cache of encoder states on disk, so that a model on frozen encoders can be trained on two CPU cores.

A cache is a folder `.cache/states/KEY`. KEY is a hash of the encoder's weights, the front end's code and the settings:

    states.bin     float16, the (frames, states, dim) of all clips or texts one after another
    index.jsonl    one line per entry: its key and its number of frames

Both files only grow. A killed run loses only the entries it was writing; the next run continues after the last complete
line. One memory map serves all entries, so that a corpus of any size needs a single file descriptor.
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
from training import augment, batches, encoders, hub
from training.batches import Tokens
from training.files import cache_folder

States = NDArray[np.float16]
FLUSH_EVERY = 64  # entries between two writes to disk: at most so many are lost when a run is killed
Encode = Callable[[list[str]], Iterable[tuple[str, States]]]  # missing keys -> (key, states) in any order


class StateCache:
    """States by key: `cache[key]` is (frames, states, dim) float16, memory-mapped.

    Args:
        folder: created if it does not exist.
        shape: (states, dim).
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape = folder, shape
        self._states_path, self._index_path = folder / "states.bin", folder / "index.jsonl"
        self._spans: dict[str, tuple[int, int]] = {}
        self._states: NDArray[np.float16] | None = None
        self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._spans

    def __getitem__(self, key: str) -> States:
        start, end = self._spans[key]
        assert self._states is not None
        return self._states[start:end]

    def add(self, keys: Sequence[str], encode: Encode, description: str) -> None:
        """Encode the keys that are not cached yet, with a progress bar.

        Args:
            keys: distinct keys.
            encode: computes the states of missing keys.
            description: label of the progress bar.
        """
        with FileLock(self.folder / "lock"):
            self._remove_incomplete()
            self._read()  # another process may have added entries meanwhile
            missing = [key for key in keys if key not in self]
            if not missing:
                return
            console = Console(stderr=True)
            if len(missing) < len(keys):
                console.print(f"{description}: {len(keys) - len(missing)} of {len(keys)} are already cached")
            with self._states_path.open("ab") as states, self._index_path.open("a") as index:
                entries = track(encode(missing), description=description, total=len(missing), console=console)
                self._write(entries, states, index)
            self._read()

    def _write(self, entries: Iterable[tuple[str, States]], states: IO[bytes], index: IO[str]) -> None:
        """Append entries. The states are written before their index lines, so that every line is valid."""
        lines: list[str] = []
        for key, array in entries:
            states.write(np.ascontiguousarray(array, np.float16).tobytes())
            lines.append(json.dumps([key, len(array)]) + "\n")
            if len(lines) == FLUSH_EVERY:
                states.flush()
                index.writelines(lines)
                index.flush()
                lines = []
        states.flush()
        index.writelines(lines)

    def _index_lines(self) -> bytes:
        """The complete lines of the index; a line that is still being written is left out."""
        content = self._index_path.read_bytes() if self._index_path.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    def _remove_incomplete(self) -> None:
        """Cut off what a killed run left incomplete. Call it with the lock: another process may be writing."""
        lines = self._index_lines()
        frames = sum(count for _, count in map(json.loads, lines.splitlines()))
        if self._index_path.exists() and self._index_path.stat().st_size > len(lines):
            self._index_path.write_bytes(lines)
        if self._states_path.exists():
            with self._states_path.open("r+b") as file:
                file.truncate(2 * int(np.prod(self.shape)) * frames)

    def _read(self) -> None:
        """Read the index and map the states that it lists."""
        end, spans = 0, {}
        for key, frames in map(json.loads, self._index_lines().splitlines()):
            spans[key] = (end, end + frames)
            end += frames
        self._spans = spans
        if end:  # copy-on-write, because torch warns about read-only arrays
            self._states = np.memmap(self._states_path, np.float16, "c", shape=(end, *self.shape))


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def front_end_hash() -> str:
    """Hash of the code that computes the encoders' input, since a change to it invalidates the cache."""
    audio = sorted(Path(runtime_audio.__path__[0]).glob("*.py"))
    code = [path.read_text() for path in audio]
    code += [inspect.getsource(m) for m in (runtime_features, runtime_text, mel, augment, hub)]
    return hashlib.sha256("".join(code).encode()).hexdigest()


def encoder_cache(kind: str, encoder: nn.Module, shape: tuple[int, int]) -> StateCache:
    """The cache of an encoder's states; `shape` is (states, dim)."""
    name = hashlib.sha256(f"{kind} {weights_hash(encoder)} {front_end_hash()} {shape}".encode()).hexdigest()[:16]
    return StateCache(cache_folder() / "states" / f"{kind}-{name}", shape)


class AudioCache:
    """Cached states at 50 Hz of clips of up to 20 s, without padding, and of augmented variants of them.

    Args:
        encoder: a frozen audio encoder.
        shape: (states, dim) of its states.
        pooled: keep only the mean and the standard deviation over frames, as two frames: 8 KB a clip.
    """

    def __init__(self, encoder: nn.Module, shape: tuple[int, int], pooled: bool = False) -> None:
        self.encoder, self.pooled = encoder, pooled
        self.cache = encoder_cache("pooled" if pooled else "audio", encoder, shape)
        self._hash: dict[Path, str] = {}

    def fill(self, paths: Sequence[Path], copies: int = 0) -> AudioCache:
        """Encode missing clips and `copies` augmented variants of each; every variant has its own seed."""
        for path in paths:
            if path not in self._hash:
                self._hash[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        by_key = {self._key(path, copy): (path, copy) for path in paths for copy in range(copies + 1)}
        device = next(self.encoder.parameters()).device

        @torch.inference_mode()
        def encode(keys: list[str]) -> Iterator[tuple[str, States]]:
            for key in keys:
                prepared = cast(Any, self.encoder).prepare(self._samples(*by_key[key]))
                states = encoders.audio_states(self.encoder, prepared[None].to(device))[0]
                if self.pooled:
                    states = torch.stack([states.mean(0), states.std(0, correction=0)])
                yield key, states.half().cpu().numpy()

        self.cache.add(list(by_key), encode, "audio states")
        return self

    def states(self, path: Path, copy: int = 0) -> States:
        """States (frames, states, dim) of a clip (copy 0) or of one of its variants."""
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
    """Encode the texts that are not cached yet."""
    by_key = {t.key: t for t in texts}

    @torch.inference_mode()
    def encode(keys: list[str]) -> Iterator[tuple[str, States]]:
        for i, states in batches.encode_texts(encoder, [by_key[k] for k in keys]):
            yield keys[i], states.half().cpu().numpy()

    cache.add(list(by_key), encode, "text states")
    return cache
