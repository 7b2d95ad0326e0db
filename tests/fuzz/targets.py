"""Fuzzing targets: valid inputs to damage, and the call that reads them and may raise only HBAFError."""

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

from benchmarks.formats import PAIRS, encode, example_clips
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
        seeds: valid inputs.
        attempt: reads one input.
    """

    seeds: list[bytes]
    attempt: Callable[[bytes], object]


def targets(folder: Path) -> dict[str, Target]:
    """All targets by name; `folder` is for files that must be on disk."""
    runtime = HBAFRuntime(threads=1)
    return {
        "audio": Target(_recordings(), _load_audio),
        "bundle": Target([_bundle()], lambda data: load_bundle(_write(folder / "a.hbaf", data))),
        "manifest": Target([_bundle_files()["manifest.json"]], lambda data: load_bundle(_with_manifest(folder, data))),
        "state": Target([_state(runtime, folder)], lambda data: _restore(runtime, folder, data)),
        "lines": Target([DIALOGUE], lambda data: list(read_utterances(io.BytesIO(data), "a.jsonl", folder))),
        "transcript": Target(TRANSCRIPTS, lambda data: _clean(data.decode("utf-8", "surrogateescape"))),
    }


def _recordings() -> list[bytes]:
    """Half a second in each container and codec."""
    speech = example_clips({pair.rate for pair in PAIRS})
    return [encode(pair, speech[pair.rate][: pair.rate // 2]) for pair in PAIRS]


def _load_audio(data: bytes) -> None:
    audio = load_audio(data)
    assert audio.samples.dtype == np.float32
    assert np.isfinite(audio.samples).all()
    assert audio.samples.size <= 320_000
    if not audio.is_too_short and not audio.is_silent:
        assert np.isfinite(log_mel(audio.samples)).all()


def _bundle_files() -> dict[str, bytes]:
    """Files of a small bundle: the manifest of the default bundle, with a few bytes for each graph."""
    manifest = json.loads((DEFAULT / "manifest.json").read_bytes())
    files = {"tokenizer.json": b"{}", **{manifest["graphs"][graph]["file"]: graph.encode() for graph in GRAPHS}}
    manifest["files"] = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    return {"manifest.json": json.dumps(manifest).encode(), **files}


def _bundle() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _bundle_files().items():
            archive.writestr(name, content)
    return file.getvalue()


def _with_manifest(folder: Path, manifest: bytes) -> Path:
    bundle = folder / "bundle"
    for name, content in {**_bundle_files(), "manifest.json": manifest}.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    return bundle


def _state(runtime: HBAFRuntime, folder: Path) -> bytes:
    conversation = runtime.conversation()
    for speaker in ("anna", "bob", None):
        runtime.predict(text="We won!", speaker=speaker, conversation=conversation)
    conversation.save(folder / "conversation")
    return (folder / "conversation").read_bytes()


def _restore(runtime: HBAFRuntime, folder: Path, data: bytes) -> None:
    """Load the damaged state once with its hash corrected, so that the later checks are reached, and once unchanged."""
    rehashed = data[:-32] + hashlib.sha256(data[:-32]).digest()
    with contextlib.suppress(StateError):
        runtime.load_conversation(_write(folder / "conversation", rehashed))
    runtime.load_conversation(_write(folder / "conversation", data))


def _clean(text: str) -> None:
    cleaned, removed = clean_text(text)
    assert clean_text(cleaned)[0] == cleaned
    warning = removal_warning(removed) if removed else ""
    assert len(warning) < 600
    for shown in (cleaned, warning, normalise_name(text) or ""):
        assert shown.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


def _write(path: Path, data: bytes) -> Path:
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
FORMATS, VALUES = ("<I", ">I", "<Q", ">Q", "<H"), (0, 1, 255, 32_767)
NUMBERS = [struct.pack(struct_format, value) for struct_format in FORMATS for value in VALUES] + [
    b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\xff\xff\xff\x7f", b"\x80" + bytes(3), bytes(3) + b"\x80",
]  # fmt: skip
PIECES = [b"data", b"RIFF", b"ID3", b"{", b"[", b'"', b"<", b"&#x110000;", b"\x1b[", b"NaN", b"null", b"1e999", b"\xed"]
