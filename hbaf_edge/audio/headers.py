"""What a file's header says about its length, checked against the file.

A recorder that streams cannot know how long a sound will be, and writes a placeholder where the size belongs: 0, the
largest number, or one of the values below. Decoders then read nothing, or refuse the file. The size is replaced by
what the file really holds. Where it is no placeholder, but larger than the file or far smaller, the caller is told.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from hbaf_edge.audio.source import Source

# No utterance of speech takes 1.9 GB. sox writes 0x7FFFF000, cloud services 2,000,000,000, others 2^31 or 2^32 - 1.
PLACEHOLDER = 1_900_000_000
TRUNCATED = "is truncated (its header promises more than the file holds)"
UNCOUNTED = "holds far more than its header says, as of a recorder that was broken off"
MAX_CHUNKS = 10_000  # far more than any file has; bounds the walk over a damaged one
W64_TAIL = bytes.fromhex("2e91cf11a5d628db04c10000")
W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
HTK_WAVEFORM = bytes([0, 2, 0, 0])  # samples of two bytes, of kind 0
HTK_PERIODS = (52, 1_250)  # of 192 to 8 kHz, in units of 100 ns


class Data(NamedTuple):
    """Where a header keeps the size of its samples, and what it says.

    Attributes:
        begin: offset of the first sample.
        declared: bytes of samples that the header promises; negative where it says that it does not know.
        fields: places of sizes: offset, `struct` format, and what is to be added to the number of bytes there.
        unit: bytes that the fields count in.
        may_go_on: whether what stands behind the samples that the header promises can only be more samples.
    """

    begin: int
    declared: int
    fields: tuple[tuple[int, str, int], ...]
    unit: int = 1
    may_go_on: bool = False


def mend_sizes(source: Source) -> str:
    """Replace sizes in a header that cannot be right by what the file holds, for later readers of the source.

    Returns:
        what the caller should know: the file is shorter than its header says, or far longer; "" of placeholders.
    """
    data = _find_data(source)
    if data is None:
        return ""
    held = max(0, source.size - data.begin)
    unknown = data.declared <= 0 or data.declared >= PLACEHOLDER
    # A recorder that crashed had not counted its last samples; a short rest is no sound that anybody misses.
    uncounted = data.may_go_on and 0 < data.declared < held - data.declared
    if not unknown and not uncounted and data.declared <= held:
        return ""
    for offset, form, more in data.fields:
        size = held // data.unit + more
        source.patch(offset, struct.pack(form, min(size, (1 << 8 * struct.calcsize(form)) - 1)))
    if unknown or data.declared == held + 1:  # padding to an even number
        return ""
    return TRUNCATED if data.declared > held else UNCOUNTED


def _find_data(source: Source) -> Data | None:
    """The size fields of the containers whose decoders trust them; None for every other file."""
    head = source.bytes_at(0, 28)
    if len(head) < 24:
        return None
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        if head[:4] == b"BW64":  # RF64 by its later name, which libsndfile does not know
            source.patch(0, b"RF64")
        return _wave(source, ">" if head[:4] == b"RIFX" else "<")
    if head[:4] == b"riff" and head[4:16] == W64_TAIL:
        return _w64(source)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff_or_caf(source, 12, ">4sI", b"SSND", 8)
    if head[:4] in (b".snd", b"dns."):
        order = ">" if head[:4] == b".snd" else "<"
        begin, declared = struct.unpack(f"{order}II", head[4:12])
        return Data(begin, declared, ((8, f"{order}I", 0),), may_go_on=True)
    if head[:4] == b"caff":
        return _aiff_or_caf(source, 8, ">4sq", b"data", 4)
    if head[:22] == b"Creative Voice File\x1a\x1a\0":
        _mend_voice(source)
    if head[8:12] == HTK_WAVEFORM and HTK_PERIODS[0] <= int.from_bytes(head[4:8], "big") <= HTK_PERIODS[1]:
        count = int.from_bytes(head[:4], "big")
        return Data(12, 2 * count if count < PLACEHOLDER else -1, ((0, ">I", 0),), unit=2, may_go_on=True)
    return None


def _mend_voice(source: Source) -> None:
    """Creative Voice: a block's size has 24 bits. That of the first block of samples is replaced where it is open."""
    if source.bytes_at(26, 1) == b"\x01" and source.bytes_at(27, 3) in (bytes(3), b"\xff" * 3):
        # What is left but for the byte that ends the file; libsndfile takes no other end.
        source.patch(27, max(0, min(source.size - 31, (1 << 24) - 1)).to_bytes(3, "little"))


def _wave(source: Source, order: str) -> Data | None:
    """RIFF's chunks: a name, a size of 32 bits, and that many bytes, padded to an even number."""
    wide: int | None = None  # where RF64 keeps the sizes of 64 bits
    for offset, name, size in _chunks(source, 12, f"{order}4sI", 2):
        if name == b"ds64":
            wide = offset + 8
        if name == b"data":
            begin = offset + 8
            if wide is None:
                if size == 0 and _is_chunk(source, begin, f"{order}4sI"):
                    return None  # an empty recording
                fields = ((offset + 4, f"{order}I", 0), (4, f"{order}I", begin - 8))
                behind = begin + size + size % 2
                return Data(begin, size, fields, may_go_on=not _is_chunk(source, behind, f"{order}4sI"))
            declared = int.from_bytes(source.bytes_at(wide + 8, 8), "little")
            fields = ((wide, "<Q", begin - 8), (wide + 8, "<Q", 0))
            return Data(begin, declared if declared < 1 << 63 else -1, fields)
    return None


def _w64(source: Source) -> Data | None:
    """Sony Wave64: names of 16 bytes, sizes of 64 bits that count their own header, padded to eight bytes."""
    for offset, name, size in _chunks(source, 40, "<16sq", 8, own=24):
        if name == W64_DATA:
            begin = offset + 24
            return Data(begin, size, ((offset + 16, "<Q", 24), (16, "<Q", begin)))
    return None


def _aiff_or_caf(source: Source, offset: int, form: str, name: bytes, inner: int) -> Data | None:
    """AIFF and Core Audio, whose samples stand behind `inner` more bytes (offsets, edits) in their chunk.

    libsndfile reads an AIFF to the end where the size is 0 or too large, and -1 in a CAF says the same.
    """
    even = 2 if name == b"SSND" else 1
    for place, found, size in _chunks(source, offset, form, even):
        if found == name:
            begin = place + struct.calcsize(form) + inner
            return Data(begin, size - inner, ((place + 4, f">{form[-1]}", inner),))
    return None


def _chunks(source: Source, offset: int, form: str, even: int, own: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """(offset, name, size) of each chunk.

    Args:
        source: the file.
        offset: of the first chunk.
        form: `struct` format of a chunk's name and size.
        even: what sizes are padded to a multiple of.
        own: bytes of a chunk's header that its size counts too.
    """
    length = struct.calcsize(form)
    for _ in range(MAX_CHUNKS):
        head = source.bytes_at(offset, length)
        if len(head) < length:
            return
        name, size = struct.unpack(form, head)
        size -= own
        yield offset, name, size
        if size < 0:
            return
        offset += length + size + -size % even


def _is_chunk(source: Source, offset: int, form: str) -> bool:
    """Whether another chunk stands there rather than samples; so it is where there is nothing at all."""
    head = source.bytes_at(offset, 8)
    if len(head) < 8:
        return True
    name, size = struct.unpack(form, head)
    return all(32 <= c < 127 for c in name) and offset + 8 + size <= source.size
