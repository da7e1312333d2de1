"""Tags of MP3 players, which stand before and after recordings of any format."""

from __future__ import annotations

MAX_TAGS = 100


def end_of_tags(encoded: bytes, position: int = 0) -> int:
    """Find where the ID3 tags end that start at `position`; there where none does."""
    for _ in range(MAX_TAGS):
        if encoded[position : position + 3] == b"TAG":
            position += 128
        elif encoded[position : position + 3] == b"ID3" and len(encoded) >= position + 10:
            size = 0
            for byte in encoded[position + 6 : position + 10]:
                size = size << 7 | byte & 0x7F
            position += 10 + size + (10 if encoded[position + 5] & 0x10 else 0)
        else:
            break
    return position


def without_first(encoded: bytes) -> bytes:
    """Remove the ID3v2 tags before a recording; of one that is longer than the file its header alone."""
    if encoded[:3] != b"ID3":
        return encoded
    start = end_of_tags(encoded)
    return encoded[start if start < len(encoded) else 10 :]


def without_last(encoded: bytes) -> bytes:
    """Remove the ID3v1 and APE tags after a recording."""
    if encoded[-128:-125] == b"TAG":
        encoded = encoded[:-128]
    if encoded[-32:-24] == b"APETAGEX":
        has_header = encoded[-9] & 0x80
        encoded = encoded[: -int.from_bytes(encoded[-20:-16], "little") - (32 if has_header else 0)]
    return encoded


def is_no_audio(rest: bytes) -> bool:
    """Tell whether what follows a recording is a tag or zeros, or nothing."""
    return rest.startswith((b"TAG", b"APETAGEX", b"ID3", b"LYRICSBEGIN")) or not rest.strip(b"\0")
