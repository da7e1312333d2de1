"""MPEG audio counted frame by frame, as the lengths that headers announce or decoders estimate are wrong."""

from __future__ import annotations

import dataclasses

from mser_jax.corpora.decoding import tags

_BITRATES = {  # kbit/s by (MPEG 1 or not, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version
_SEARCHED = 1 << 20  # bytes of garbage that may come before a frame
_LONGEST = 2_881  # bytes of a frame
_CHAIN = 3  # frames in succession that are no accident


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    """A frame's header. size: bytes. samples: a channel."""

    size: int
    samples: int
    rate: int
    kind: tuple[int, int, int]  # version, layer, index of the rate: one in a stream
    xing: int  # where a Xing header would stand


@dataclasses.dataclass(frozen=True)
class Stream:
    """The frames of a file, one after the other, and what was said of their number.

    encoded: the frames, with a count of them in front, which decoders believe. seconds: of all frames. announced:
    frames that the file's own count states, 0 = it has none. counted: frames that are there. lost: bytes among
    the frames that are none. rate: Hz.
    """

    encoded: bytes
    seconds: float
    announced: int
    counted: int
    lost: int
    rate: int


def first_frame(encoded: bytes) -> int:
    """Find the first of several frames in succession; −1 where there are none."""
    headers: dict[int, _Frame | None] = {}
    return _find(encoded, 0, headers, None, min(len(encoded), _SEARCHED))


def frames(encoded: bytes) -> Stream:
    """Collect the frames of a file in which `first_frame` finds one."""
    headers: dict[int, _Frame | None] = {}
    position = first_frame(encoded)
    first = _header(encoded, position, headers)
    parts, counted, lost, samples = [], 0, 0, 0
    while position >= 0:
        start = position
        while (frame := _header(encoded, position, headers)) and frame.kind == first.kind:
            if position + frame.size > len(encoded):
                break
            position += frame.size
            samples += frame.samples
            counted += 1
        parts.append(encoded[start:position])
        position = min(tags.end_of_tags(encoded, position), len(encoded))
        found = _find(encoded, position, headers, first.kind, min(len(encoded), position + _SEARCHED))
        rest = encoded[position : found if found >= 0 else len(encoded)]
        is_last_frame = found < 0 and len(rest) < _LONGEST
        lost += 0 if is_last_frame or tags.is_no_audio(rest) else len(rest)
        position = found
    announced, is_xing, is_vbri = _announced(parts[0], first)
    if is_xing or is_vbri:
        counted, samples = counted - 1, samples - first.samples
    if first.kind[1] == 3 and not (is_xing and announced == counted):
        header = _xing(parts[0], counted)
        parts[0] = header + parts[0][first.size if is_xing or is_vbri else 0 :]
    return Stream(b"".join(parts), samples / first.rate, announced, counted, lost, first.rate)


def _header(encoded: bytes, position: int, known: dict[int, _Frame | None]) -> _Frame | None:
    word = int.from_bytes(encoded[position : position + 4], "big")
    if word < 0xFFE00000:
        return None
    word &= 0xFFFFFFC0 | 0xC0
    if word not in known:
        known[word] = _parse(word)
    return known[word]


def _parse(word: int) -> _Frame | None:
    version, layer, bitrate, rate = word >> 19 & 3, 4 - (word >> 17 & 3), word >> 12 & 15, word >> 10 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz, bits = _RATES[version][rate], 1000 * _BITRATES[version == 3, layer][bitrate]
    padding = word >> 9 & 1
    if layer == 1:
        samples, size = 384, (12 * bits // hertz + padding) * 4
    else:
        samples = 576 if layer == 3 and version != 3 else 1152
        size = samples // 8 * bits // hertz + padding
    is_mono = word >> 6 & 3 == 3
    side = (17 if is_mono else 32) if version == 3 else (9 if is_mono else 17)
    return _Frame(size, samples, hertz, (version, layer, rate), 4 + side)


def _find(
    encoded: bytes,
    start: int,
    headers: dict[int, _Frame | None],
    kind: tuple[int, int, int] | None,
    end: int,
) -> int:
    """The first position in [start, end) from which _CHAIN frames, or fewer up to the end, follow each other; or −1."""
    position = encoded.find(b"\xff", start, end)
    while position >= 0:
        at, found, first = position, 0, None
        while found < _CHAIN and (frame := _header(encoded, at, headers)):
            first = first or frame
            if frame.kind != (kind or first.kind) or at + frame.size > len(encoded):
                break
            found, at = found + 1, at + frame.size
        ends = found and (at == len(encoded) or encoded[at : at + 3] == b"TAG" or encoded[at : at + 8] == b"APETAGEX")
        if found == _CHAIN or ends:
            return position
        position = encoded.find(b"\xff", position + 1, end)
    return -1


def _announced(encoded: bytes, first: _Frame) -> tuple[int, bool, bool]:
    """The number of frames that the first one states, 0 where none, and whether it is a Xing or a VBRI header."""
    xing, vbri = encoded[first.xing : first.xing + 12], encoded[36:54]
    if xing[:4] in (b"Xing", b"Info"):
        return (int.from_bytes(xing[8:12], "big") if xing[7] & 1 else 0), True, False
    if vbri[:4] == b"VBRI":
        return int.from_bytes(vbri[14:18], "big"), False, True
    return 0, False, False


def _xing(encoded: bytes, counted: int) -> bytes:
    """A frame of silence that states how many follow."""
    word = int.from_bytes(encoded[:4], "big") | 0x10000  # no checksum
    for bitrate in range(1, 15):
        header = word & ~0xF200 | bitrate << 12
        frame = _parse(header)
        if frame.size >= frame.xing + 12:
            break
    stated = header.to_bytes(4, "big").ljust(frame.xing, b"\0") + b"Xing\0\0\0\1" + counted.to_bytes(4, "big")
    return stated.ljust(frame.size, b"\0")
