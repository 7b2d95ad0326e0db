"""What is fuzzed: of each target, whole inputs to damage, and the call that may raise nothing but our own errors."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.formats import PAIRS, encode, example
from hbaf_edge import HBAFRuntime
from hbaf_edge.audio import load_audio
from hbaf_edge.bundle import DEFAULT, GRAPHS, load_bundle
from hbaf_edge.dialogue_file import read_utterances
from hbaf_edge.errors import StateError
from hbaf_edge.mel import log_mel
from hbaf_edge.text import clean_text, normalise_name, removal_warning


class Target(NamedTuple):
    """One kind of input.

    Attributes:
        seeds: whole inputs.
        attempt: reads one.
    """

    seeds: list[bytes]
    attempt: Callable[[bytes], object]


def targets(folder: Path) -> dict[str, Target]:
    """All of them; files that must lie on disk are written to `folder`."""
    runtime = HBAFRuntime(threads=1)
    return {
        "audio": Target(_recordings(), _hear),
        "bundle": Target([_bundle()], lambda data: load_bundle(_written(folder / "a.hbaf", data))),
        "manifest": Target([_members()["manifest.json"]], lambda data: load_bundle(_with_manifest(folder, data))),
        "state": Target([_state(runtime, folder)], lambda data: _restore(runtime, folder, data)),
        "lines": Target([DIALOGUE], lambda data: list(read_utterances(io.BytesIO(data), "a.jsonl", folder))),
        "transcript": Target(TRANSCRIPTS, lambda data: _clean(data.decode("utf-8", "surrogateescape"))),
    }


def _recordings() -> list[bytes]:
    """Half a second in each container and codec."""
    speech = example({pair.rate for pair in PAIRS})
    return [encode(pair, speech[pair.rate][: pair.rate // 2]) for pair in PAIRS]


def _hear(data: bytes) -> None:
    heard = load_audio(data)
    assert heard.samples.dtype == np.float32
    assert np.isfinite(heard.samples).all()
    assert heard.samples.size <= 320_000
    if not heard.is_too_short and not heard.is_silent:
        assert np.isfinite(log_mel(heard.samples)).all()


def _members() -> dict[str, bytes]:
    """A bundle of a few hundred bytes: the default one's manifest with small files in its graphs' place."""
    manifest = json.loads((DEFAULT / "manifest.json").read_bytes())
    files = {"tokenizer.json": b"{}", **{manifest["graphs"][graph]["file"]: graph.encode() for graph in GRAPHS}}
    manifest["files"] = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    return {"manifest.json": json.dumps(manifest).encode(), **files}


def _bundle() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _members().items():
            archive.writestr(name, content)
    return file.getvalue()


def _with_manifest(folder: Path, manifest: bytes) -> Path:
    bundle = folder / "bundle"
    for name, content in {**_members(), "manifest.json": manifest}.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    return bundle


def _state(runtime: HBAFRuntime, folder: Path) -> bytes:
    chat = runtime.conversation()
    for speaker in ("anna", "bob", None):
        runtime.predict(text="We won!", speaker=speaker, conversation=chat)
    chat.save(folder / "chat")
    return (folder / "chat").read_bytes()


def _restore(runtime: HBAFRuntime, folder: Path, data: bytes) -> None:
    """Once as it is, and once with the hash put right, so that what is behind the hash is reached."""
    signed = data[:-32] + hashlib.sha256(data[:-32]).digest()
    with contextlib.suppress(StateError):
        runtime.load_conversation(_written(folder / "chat", signed))
    runtime.load_conversation(_written(folder / "chat", data))


def _clean(text: str) -> None:
    words, removed = clean_text(text)
    assert clean_text(words)[0] == words
    warning = removal_warning(removed) if removed else ""
    assert len(warning) < 600
    for shown in (words, warning, normalise_name(text) or ""):
        assert shown.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


DIALOGUE = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"audio": "a.wav", "text": "Hello.", "speaker": "anna", "id": 7, "start": 0.25},
        {"text": "caf\u00e9 \U0001f600", "speaker": None, "nested": {"a": [1, 2, {"b": None}]}},
        {"text": "I'm fine.", "label": "joy", "end": 1e3},
    )
)
TRANSCRIPTS = [
    text.encode()
    for text in (
        "<|en|><|ANGRY|><|Speech|><|withitn|>I said no! [LAUGHTER] (upbeat music) *sighs*",
        "1\n00:00:01,000 --> 00:00:02,500\n<v Anna><i>Don&#39;t</i> go &amp; stay {\\an8}",
        "SPEAKER_00: I (for one) love it \u266a la la \u266a [[nested (brackets)]] \x1b[31mred\x1b]0;title\x07",
        "a < b and b > c, 2*3*4, I <3 you, \u3010\u7b11\u3011 \u0645\u0631\u062d\u0628\u0627 \u202e",
    )
]
NUMBERS = [struct.pack(form, value) for form in ("<I", ">I", "<Q", ">Q", "<H") for value in (0, 1, 255, 32_767)] + [
    b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\xff\xff\xff\x7f", b"\x80" + bytes(3), bytes(3) + b"\x80",
]  # fmt: skip
PIECES = [b"data", b"RIFF", b"ID3", b"{", b"[", b'"', b"<", b"&#x110000;", b"\x1b[", b"NaN", b"null", b"1e999", b"\xed"]
