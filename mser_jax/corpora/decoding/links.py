"""FLAC and Ogg: files that were joined, of which decoders read the first, and files that were cut off."""

from __future__ import annotations

import re
import zlib

from mser_jax.corpora.decoding.errors import BadAudio, Reason

_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_FIRST_PAGE = 2


def flac(encoded: bytes) -> list[bytes]:
    """Split a file into the FLAC files that it is made of."""
    starts = [match.start() for match in _FLAC_START.finditer(encoded)] or [0]
    return [encoded[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def flac_frames(encoded: bytes) -> int:
    """Read how many samples a FLAC file announces, 0 = unknown."""
    return int.from_bytes(encoded[21:26], "big") & (1 << 36) - 1


def flac_of_unknown_length(encoded: bytes) -> bytes:
    """Remove the announced number of samples."""
    return encoded[:21] + bytes([encoded[21] & 0xF0]) + bytes(4) + encoded[26:]


def ogg(encoded: bytes) -> list[bytes] | None:
    """Split a file into the Ogg streams that follow each other in it; None where some run side by side (video).

    Raises:
        BadAudio: a page is damaged, which decoders pass over in silence, or the file ends within one.
    """
    starts: list[int] = []
    position, flags = encoded.find(b"OggS"), 0
    in_headers, is_chain, is_whole = False, True, True
    while 0 <= position <= len(encoded) - 27:
        flags, segments = encoded[position + 5], encoded[position + 26]
        table = encoded[position + 27 : position + 27 + segments]
        stop = position + 27 + segments + sum(table)
        is_whole = stop <= len(encoded)
        if is_whole and _checksum(encoded[position:stop]) != int.from_bytes(
            encoded[position + 22 : position + 26], "little"
        ):
            raise BadAudio(Reason.UNREADABLE, "a page of Ogg does not fit its checksum: damaged")
        if flags & _FIRST_PAGE:
            is_chain &= not in_headers
            starts.append(position)
        in_headers = bool(flags & _FIRST_PAGE)
        position = encoded.find(b"OggS", stop if encoded[stop : stop + 4] == b"OggS" else position + 4)
    if not is_whole or position >= 0:
        raise BadAudio(Reason.TRUNCATED, "the file ends within a page of Ogg")
    if not is_chain:
        return None
    starts = starts or [0]
    return [encoded[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True)]


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _checksum(page: bytes) -> int:
    """The CRC of Ogg: zlib's, from 0, with the bits of each byte the other way round."""
    crc = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2)
