"""Recognise a container by its first bytes, and MP3 frames and tags anywhere in bytes."""

from __future__ import annotations

import re

ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
TS_PACKET = 188
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"moof")
MP4_BRANDS = {b"M4A ": "M4A", b"M4B ": "M4A", b"qt  ": "QuickTime", b"3g2a": "3GP"}
MAGICS = (
    (b"#!AMR", 0, "AMR"),
    (ASF, 0, "WMA (ASF)"),
    (b"AVI ", 8, "AVI"),
    (b"WAVE", 8, "WAV"),
    (b"OggS", 0, "OGG"),
    (b"fLaC", 0, "FLAC"),
    (b"caff", 0, "CAF"),
    (b"AIF", 8, "AIFF"),
    (b".snd", 0, "AU"),
    (b"wvpk", 0, "WavPack"),
    (b"ID3", 0, "MP3"),
    (b"\x0b\x77", 0, "AC-3"),
    (b"#EXTM3U", 0, "a playlist"),
)
# Kilobits per second of MPEG layer III, by four bits of the header: version 1, then versions 2 and 2.5.
BIT_RATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version
TAG = re.compile(rb"TAG|APETAGEX|LYRICSBEGIN|3DI|ID3")  # ID3v1, APEv2, Lyrics3, ID3v2 at the end and at the start


def container_name(head: bytes) -> str:
    """Name of the container that begins with these bytes (the first kilobyte); empty if unknown.

    >>> container_name(bytes.fromhex("1a45dfa3") + bytes(20) + b"webm"), container_name(b"Hello.")
    ('WebM', '')
    """
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "WebM" if b"webm" in head[:80] else "Matroska"
    if head[4:8] in MP4_BOXES:
        brand = head[8:12]
        return "3GP" if brand[:3] == b"3gp" else MP4_BRANDS.get(brand, "MP4")
    if len(head) > TS_PACKET and head[0] == head[TS_PACKET] == 0x47:
        return "MPEG-TS"
    for magic, offset, name in MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    return mpeg_kind(head)


def mpeg_kind(head: bytes) -> str:
    """Name of a stream of MPEG audio frames, which begin with a synchronisation word; empty for anything else.

    >>> mpeg_kind(bytes([0xFF, 0xFB, 0x90, 0x00])), mpeg_kind(bytes([0xFF, 0xF1, 0x50, 0x80]))
    ('MP3', 'ADTS (AAC)')
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return ""
    if head[1] & 0xF6 == 0xF0:
        return "ADTS (AAC)"
    # Layer, version, bit rate and sample rate have no reserved values.
    is_valid = head[1] & 0x06 and head[1] & 0x18 != 0x08 and head[2] & 0xF0 != 0xF0 and head[2] & 0x0C != 0x0C
    return "MP3" if is_valid else ""


def has_mpeg_frames(data: bytes, in_a_row: int = 3) -> bool:
    """Whether so many MP3 frames follow each other somewhere, each starting where the previous one ends."""
    start = data.find(b"\xff")
    while 0 <= start < len(data) - 4:
        end = start
        for _ in range(in_a_row):
            length = _frame_length(data[end : end + 4])
            if not length:
                break
            end += length
        else:
            return end <= len(data)
        start = data.find(b"\xff", start + 1)
    return False


def _frame_length(header: bytes) -> int:
    """Length in bytes of the MP3 frame with this header; 0 if it is not one."""
    if mpeg_kind(header) != "MP3" or header[1] & 0x06 != 0x02:
        return 0
    version, rate, bits = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    samples = 144 if version == 3 else 72
    return samples * 1_000 * BIT_RATES[version != 3][bits] // MPEG_RATES[version][rate] + (header[2] >> 1 & 1)


def is_mpeg_tag(data: bytes) -> bool:
    """Whether the bytes after the last frame of an MP3 are tags or padding.

    >>> is_mpeg_tag(bytes(9)), is_mpeg_tag(b"cover" + b"APETAGEX"), is_mpeg_tag(b"<html>")
    (True, True, False)
    """
    return not data.strip(b"\0") or TAG.search(data) is not None
