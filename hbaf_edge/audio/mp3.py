"""The end of an MP3: tags and padding behind its last frame, and whether what a decoder left unread holds frames."""

from __future__ import annotations

import re
import struct

from hbaf_edge.audio.sniff import mpeg_kind
from hbaf_edge.audio.source import Source

# Bits per second of MPEG audio's layer III, by the header's four bits: version 1, then versions 2 and 2.5.
BIT_RATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version


def has_mpeg_frames(data: bytes, in_a_row: int = 3) -> bool:
    """Whether frames of an MP3 follow one another somewhere in it, each where the one before ends."""
    place = data.find(b"\xff")
    while 0 <= place < len(data) - 4:
        end = place
        for _ in range(in_a_row):
            length = _frame_length(data[end : end + 4])
            if not length:
                break
            end += length
        else:
            return end <= len(data)
        place = data.find(b"\xff", place + 1)
    return False


def _frame_length(header: bytes) -> int:
    """Bytes of the MP3 frame that begins so; 0 where none does."""
    if mpeg_kind(header) != "MP3" or header[1] & 0x06 != 0x02:
        return 0
    version, rate, bits = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    samples = 144 if version == 3 else 72
    return samples * 1_000 * BIT_RATES[version != 3][bits] // MPEG_RATES[version][rate] + (header[2] >> 1 & 1)


def without_tags(source: Source) -> int:
    """Bytes of an MP3 before the tags and the padding that stand behind its last frame.

    ID3v1 and its extension, Lyrics3, APEv2 with its pictures, ID3v2 at the end, and zeros, in any order.
    """
    end = source.size
    for _ in range(64):
        before = end
        for strip in (_zeros, _id3v1, _lyrics3, _ape, _id3v2_footer):
            end = strip(source, end)
        if end == before:
            break
    return end


def _zeros(source: Source, end: int) -> int:
    while end > 0:
        start = max(0, end - 65_536)
        kept = len(source.bytes_at(start, end - start).rstrip(b"\0"))
        end = start + kept
        if kept:
            break
    return end


def _id3v1(source: Source, end: int) -> int:
    """128 bytes, and 227 before them in its extension. Its last bytes may be zeros, which are gone already."""
    begin = max(0, end - 128)
    found = re.search(rb"(?<!APE)TAG", source.bytes_at(max(0, begin - 3), 131))  # APE's own footer has the letters too
    if found is None or max(0, begin - 3) + found.start() + 128 > source.size:
        return end
    end = max(0, begin - 3) + found.start()
    return end - 227 if end >= 227 and source.bytes_at(end - 227, 4) == b"TAG+" else end


def _lyrics3(source: Source, end: int) -> int:
    tail = source.bytes_at(max(0, end - 15), 15)
    if tail.endswith(b"LYRICS200") and tail[:6].isdigit():
        return max(0, end - 15 - int(tail[:6]))
    return end


def _ape(source: Source, end: int) -> int:
    """A footer of 32 bytes, of which the last eight are zeros and may be gone already."""
    begin = max(0, end - 32)
    found = source.bytes_at(begin, 32).rfind(b"APETAGEX")
    if found < 0:
        return end
    footer = source.bytes_at(begin + found, 24)
    if len(footer) < 24:
        return end
    _, size, _, flags = struct.unpack("<IIII", footer[8:])
    size += 32 if flags & 0x8000_0000 else 0  # a header before the items, which the size does not count
    return int(max(0, begin + found + 32 - max(32, size)))


def _id3v2_footer(source: Source, end: int) -> int:
    begin = max(0, end - 10)
    found = source.bytes_at(begin, 10).rfind(b"3DI")
    footer = source.bytes_at(begin + found, 10) if found >= 0 else b""
    if len(footer) < 10:
        return end
    size = 0
    for part in footer[6:]:
        size = size << 7 | part & 0x7F
    return max(0, begin + found - 10 - size)
