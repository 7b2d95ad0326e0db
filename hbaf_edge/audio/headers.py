"""Check the sizes in a file's header against the file, and correct them.

A recorder that streams cannot know how long the recording will be, so it writes a placeholder as the size: 0, the
largest number, or one of the values below. Decoders then read nothing or reject the file. The placeholder is replaced
by the size that the file really has. A size that is no placeholder but larger than the file, or far smaller, is also
replaced, and the caller gets a warning.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from hbaf_edge.audio.source import Source

# No utterance has 1.9 GB. sox writes 0x7FFFF000, cloud services 2,000,000,000, others 2^31 or 2^32 - 1.
PLACEHOLDER = 1_900_000_000
TRUNCATED = "is truncated (its header declares more than the file contains)"
UNFINISHED = "contains far more than its header declares, as if the recorder was interrupted"
MAX_CHUNKS = 10_000  # far more than any file has; bounds the search in a damaged file
W64_TAIL = bytes.fromhex("2e91cf11a5d628db04c10000")
W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
HTK_WAVEFORM = bytes([0, 2, 0, 0])  # samples of two bytes, of kind 0
HTK_PERIODS = (52, 1_250)  # of 192 to 8 kHz, in units of 100 ns


class SampleData(NamedTuple):
    """Where the samples begin, and what the header declares about their size.

    Attributes:
        begin: offset of the first sample.
        declared: bytes of samples by the header; negative if the header says that it does not know.
        size_fields: offset and `struct` format of each size field, and the bytes that it counts besides the samples.
        unit: bytes per unit of the size fields.
        may_continue: True if no other chunk follows the declared samples, so that more samples may follow.
    """

    begin: int
    declared: int
    size_fields: tuple[tuple[int, str, int], ...]
    unit: int = 1
    may_continue: bool = False


def correct_sizes(source: Source) -> str:
    """Replace wrong sizes in the header by the real ones, for later readers of the source.

    Example: a WAV of 44 header bytes and 32,000 bytes of samples, written to a pipe, declares 0xFFFFFFFF bytes. The
    size at offset 40 becomes 32,000 and the one at offset 4 becomes 32,036.

    Returns:
        The problem, for a warning: the file is shorter, or far longer, than declared. "" if there is none, or if the
        size was a placeholder.
    """
    data = _find_samples(source)
    if data is None:
        return ""
    actual = max(0, source.size - data.begin)
    is_unknown = data.declared <= 0 or data.declared >= PLACEHOLDER
    # A crashed recorder has not counted its last samples. A short rest after the samples is not worth a warning.
    is_unfinished = data.may_continue and 0 < data.declared < actual - data.declared
    if not is_unknown and not is_unfinished and data.declared <= actual:
        return ""
    for offset, struct_format, extra in data.size_fields:
        size = actual // data.unit + extra
        source.patch(offset, struct.pack(struct_format, min(size, (1 << 8 * struct.calcsize(struct_format)) - 1)))
    if is_unknown or data.declared == actual + 1:  # one byte that pads to an even number
        return ""
    return TRUNCATED if data.declared > actual else UNFINISHED


def _find_samples(source: Source) -> SampleData | None:
    """The size fields of containers whose decoders rely on them; None for every other file."""
    head = source.bytes_at(0, 28)
    if len(head) < 24:
        return None
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        if head[:4] == b"BW64":  # the newer name of RF64, which libsndfile does not know
            source.patch(0, b"RF64")
        return _wave(source, ">" if head[:4] == b"RIFX" else "<")
    if head[:4] == b"riff" and head[4:16] == W64_TAIL:
        return _w64(source)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff_or_caf(source, 12, ">4sI", b"SSND", 8)
    if head[:4] in (b".snd", b"dns."):
        order = ">" if head[:4] == b".snd" else "<"
        begin, declared = struct.unpack(f"{order}II", head[4:12])
        return SampleData(begin, declared, ((8, f"{order}I", 0),), may_continue=True)
    if head[:4] == b"caff":
        return _aiff_or_caf(source, 8, ">4sq", b"data", 4)
    if head[:22] == b"Creative Voice File\x1a\x1a\0":
        _correct_voc(source)
    if head[8:12] == HTK_WAVEFORM and HTK_PERIODS[0] <= int.from_bytes(head[4:8], "big") <= HTK_PERIODS[1]:
        count = int.from_bytes(head[:4], "big")
        declared = 2 * count if count < PLACEHOLDER else -1
        return SampleData(12, declared, ((0, ">I", 0),), unit=2, may_continue=True)
    return None


def _correct_voc(source: Source) -> None:
    """Correct the size of a Creative Voice file's first block of samples, which has 24 bits, if it is a placeholder."""
    if source.bytes_at(26, 1) == b"\x01" and source.bytes_at(27, 3) in (bytes(3), b"\xff" * 3):
        # All bytes that follow except the last, which ends the file: libsndfile accepts no other end.
        source.patch(27, max(0, min(source.size - 31, (1 << 24) - 1)).to_bytes(3, "little"))


def _wave(source: Source, order: str) -> SampleData | None:
    """RIFF: each chunk is a name, a size of 32 bits, and that many bytes, padded to an even number."""
    ds64: int | None = None  # offset of the 64-bit sizes of RF64
    for offset, name, size in _chunks(source, 12, f"{order}4sI", 2):
        if name == b"ds64":
            ds64 = offset + 8
        if name == b"data":
            begin = offset + 8
            if ds64 is None:
                if size == 0 and _is_chunk(source, begin, f"{order}4sI"):
                    return None  # an empty recording
                size_fields = ((offset + 4, f"{order}I", 0), (4, f"{order}I", begin - 8))
                next_chunk = begin + size + size % 2
                may_continue = not _is_chunk(source, next_chunk, f"{order}4sI")
                return SampleData(begin, size, size_fields, may_continue=may_continue)
            declared = int.from_bytes(source.bytes_at(ds64 + 8, 8), "little")
            size_fields = ((ds64, "<Q", begin - 8), (ds64 + 8, "<Q", 0))
            return SampleData(begin, declared if declared < 1 << 63 else -1, size_fields)
    return None


def _w64(source: Source) -> SampleData | None:
    """Sony Wave64: names of 16 bytes, sizes of 64 bits that include the chunk's header, padded to eight bytes."""
    for offset, name, size in _chunks(source, 40, "<16sq", 8, header_bytes=24):
        if name == W64_DATA:
            begin = offset + 24
            return SampleData(begin, size, ((offset + 16, "<Q", 24), (16, "<Q", begin)))
    return None


def _aiff_or_caf(source: Source, offset: int, struct_format: str, name: bytes, skipped: int) -> SampleData | None:
    """AIFF and Core Audio, whose chunk of samples begins with `skipped` bytes of other fields (offsets, edits).

    libsndfile reads an AIFF to its end if the size is 0 or too large, and a CAF if the size is -1.
    """
    padding = 2 if name == b"SSND" else 1
    for chunk, chunk_name, size in _chunks(source, offset, struct_format, padding):
        if chunk_name == name:
            begin = chunk + struct.calcsize(struct_format) + skipped
            return SampleData(begin, size - skipped, ((chunk + 4, f">{struct_format[-1]}", skipped),))
    return None


def _chunks(
    source: Source, offset: int, struct_format: str, padding: int, header_bytes: int = 0
) -> Iterator[tuple[int, bytes, int]]:
    """(offset, name, size) of each chunk.

    Args:
        source: the file.
        offset: offset of the first chunk.
        struct_format: `struct` format of a chunk's name and size.
        padding: chunks are padded to a multiple of so many bytes.
        header_bytes: bytes of a chunk's header that its size includes.
    """
    length = struct.calcsize(struct_format)
    for _ in range(MAX_CHUNKS):
        head = source.bytes_at(offset, length)
        if len(head) < length:
            return
        name, size = struct.unpack(struct_format, head)
        size -= header_bytes
        yield offset, name, size
        if size < 0:
            return
        offset += length + size + -size % padding


def _is_chunk(source: Source, offset: int, struct_format: str) -> bool:
    """Whether a chunk, and not samples, begins at `offset`; also True at the end of the file."""
    head = source.bytes_at(offset, 8)
    if len(head) < 8:
        return True
    name, size = struct.unpack(struct_format, head)
    return all(32 <= c < 127 for c in name) and offset + 8 + size <= source.size
