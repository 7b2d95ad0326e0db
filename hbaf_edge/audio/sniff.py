"""Which container a file is, told from its first bytes: for messages, and to know what needs PyAV."""

from __future__ import annotations

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


def container_name(head: bytes) -> str:
    """Name of the container that the first kilobyte is of; empty where it tells nothing.

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
    for magic, at, name in MAGICS:
        if head[at : at + len(magic)] == magic:
            return name
    return mpeg_kind(head)


def mpeg_kind(head: bytes) -> str:
    """Name of a stream of frames without a header, each of which begins with a synchronisation word; else empty.

    >>> mpeg_kind(bytes([0xFF, 0xFB, 0x90, 0x00])), mpeg_kind(bytes([0xFF, 0xF1, 0x50, 0x80]))
    ('MP3', 'ADTS (AAC)')
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return ""
    if head[1] & 0xF6 == 0xF0:
        return "ADTS (AAC)"
    is_known = head[1] & 0x06 and head[1] & 0x18 != 0x08 and head[2] & 0xF0 != 0xF0 and head[2] & 0x0C != 0x0C
    return "MP3" if is_known else ""
