"""Files made of chunks (WAV, RF64, W64, AIFF, CAF) or of a header and samples (AU): found sizes for announced ones.

Programs that write to a pipe or are killed leave sizes that were never filled in: 0, the largest number, or any other
that is far too large. A download that broke off leaves one that is right.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator

from mser_jax.corpora.decoding import tags
from mser_jax.corpora.decoding.errors import BadAudio, Reason

TOLERANCE = 0.01  # share of the audio that may be missing or follow after its announced end (padding, sloppy headers)
MAX_CHUNKS = 10_000
# Larger sizes mean that the length was not known: signed or unsigned 32 bits, less what headers take.
_STREAMED_SIZE = 0x7FFF_0000
# No recording of this size is cut off so early; sizes such as 2,000,000,000 stand for "unknown", too.
_LARGE_SIZE, _EARLY = 250_000_000, 0.1

_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of the GUIDs of fmt, fact and data


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a family of files is made. start: of the first chunk. outer: where the size of the whole stands, 0 = nowhere.

    id_bytes: of a chunk. size: struct format of its size. inclusive: the size counts the chunk's own header.
    pad: chunks start at multiples of it. data: id of the audio. kept: ids of what decoding it needs.
    """

    start: int
    outer: int
    id_bytes: int
    size: str
    inclusive: bool
    pad: int
    data: bytes
    kept: tuple[bytes, ...]

    @property
    def header(self) -> int:
        """Bytes before a chunk's content."""
        return self.id_bytes + struct.calcsize(self.size)


_RIFF = _Layout(12, 4, 4, "<I", False, 2, b"data", (b"fmt ", b"fact"))
_RIFX = dataclasses.replace(_RIFF, size=">I")
_AIFF = _Layout(12, 4, 4, ">I", False, 2, b"SSND", (b"FVER", b"COMM"))
_SVX = dataclasses.replace(_AIFF, data=b"BODY", kept=(b"VHDR", b"CHAN"))
_W64_IDS = tuple(name + _W64_TAIL for name in (b"data", b"fmt ", b"fact"))
_W64 = _Layout(40, 16, 16, "<Q", True, 8, _W64_IDS[0], _W64_IDS[1:])
_CAF = _Layout(8, 0, 4, ">Q", False, 1, b"data", (b"desc", b"chan", b"kuki", b"pakt"))
_LAYOUTS = {b"RIFF": _RIFF, b"RF64": _RIFF, b"BW64": _RIFF, b"RIFX": _RIFX, b"FORM": _AIFF}
_LAYOUTS |= {b"riff": _W64, b"caff": _CAF}


@dataclasses.dataclass(frozen=True)
class Mended:
    """A file whose sizes are those found. there: share of the announced audio that is there, 1.0 = all.

    encoded: the very same object where nothing was wrong.
    """

    encoded: bytes
    there: float = 1.0


def mend(encoded: bytes) -> Mended:
    """Mend the sizes of a file of one of these kinds; another kind, or one without audio, comes back as it is."""
    if encoded[:4] in (b".snd", b"dns."):
        return _mend_au(encoded)
    layout = _SVX if encoded[8:12] in (b"8SVX", b"16SV") else _LAYOUTS.get(encoded[:4])
    if layout is None or len(encoded) < layout.start:
        return Mended(encoded)
    kept, audio, as_it_should_be = [], [], True
    announced = found = 0
    for name, start, size in _chunks(encoded, layout):
        there = min(size, len(encoded) - start)
        if name != layout.data:
            if name in layout.kept and there == size and (name, encoded[start : start + size]) not in kept:
                kept.append((name, encoded[start : start + size]))
            continue
        stop = _end_of_audio(encoded, layout, start, size)
        as_it_should_be &= stop == start + size and not audio and any(name in layout.kept[:2] for name, _ in kept)
        audio.append((start, stop))
        announced, found = announced + size, found + stop - start
    if not audio:
        return Mended(encoded)
    share = found / announced if announced > found and _is_cut_off(encoded, layout, announced, found) else 1.0
    if as_it_should_be and encoded[:4] not in (b"RF64", b"BW64"):
        return Mended(encoded, share)
    return Mended(_rebuilt(encoded, layout, kept, audio), share)


def wave_format(encoded: bytes) -> tuple[int, bytes]:
    """Read WAVE_FORMAT_… of a mended WAV, 0 where it has none, and its audio as it is encoded.

    Raises:
      BadAudio: the samples of PCM do not fit into the bytes that the header gives them.
    """
    tag, audio = 0, b""
    order = "little" if encoded[:4] != b"RIFX" else "big"
    for name, start, size in _chunks(encoded, _LAYOUTS[encoded[:4]]):
        if name == b"fmt ":
            fields = [int.from_bytes(encoded[at : at + 2], order) for at in range(start, start + 16, 2)]
            tag, channels, frame, bits = fields[0], fields[1], fields[6], fields[7]
            wide = frame // channels if channels else 0
            # Two bytes for 8 bits or less, one for 16: decoders take either, and half of them twice the length.
            if tag == 1 and bits and wide and (8 * wide < bits or (bits <= 8 and wide > 1)):
                detail = f"its header contradicts itself: samples of {bits} bits in {wide} bytes. Convert it again"
                raise BadAudio(Reason.UNREADABLE, detail)
        if name == b"data":
            audio = encoded[start : start + size]
    return tag, audio


def _rebuilt(encoded: bytes, layout: _Layout, kept: list[tuple[bytes, bytes]], audio: list[tuple[int, int]]) -> bytes:
    """The file with what decoding it needs, then its audio in one piece."""
    formats = [name for name, _ in kept if name != b"fact"]
    if len(set(formats)) < len(formats):
        raise BadAudio(Reason.UNREADABLE, "several recordings of different formats, joined to one file; split it")
    data = b"".join(encoded[start:stop] for start, stop in audio)
    head = b"RIFF" + encoded[4 : layout.start] if layout is _RIFF else encoded[: layout.start]
    parts = [head, *(_chunk(layout, name, content) for name, content in kept if len(audio) == 1 or name in formats)]
    whole = bytearray(b"".join([*parts, _chunk(layout, layout.data, data)]))
    if layout.outer:
        size = min(len(whole) - (0 if layout.inclusive else 8), 0xFFFF_FFFF)
        struct.pack_into(layout.size, whole, layout.outer, size)
    return bytes(whole)


def _chunk(layout: _Layout, name: bytes, content: bytes) -> bytes:
    size = min(len(content) + (layout.header if layout.inclusive else 0), (1 << 8 * struct.calcsize(layout.size)) - 1)
    return name + struct.pack(layout.size, size) + content + bytes(-len(content) % layout.pad)


def _chunks(encoded: bytes, layout: _Layout) -> Iterator[tuple[bytes, int, int]]:
    """(id, start of the content, announced size) of each chunk, up to the first that is none."""
    position, long_size = layout.start, 0
    for _ in range(MAX_CHUNKS):
        if position + layout.header > len(encoded):
            return
        name = encoded[position : position + layout.id_bytes]
        (size,) = struct.unpack_from(layout.size, encoded, position + layout.id_bytes)
        start = position + layout.header
        if layout.start == 12 and name == encoded[:4] and encoded[start : start + 4] == encoded[8:12]:
            position = start + 4  # a whole second file, joined to the first
            continue
        if name == b"ds64" and layout is _RIFF:
            (long_size,) = struct.unpack_from("<Q", encoded[start : start + 24].ljust(24, b"\0"), 8)
        if name == layout.data and size == 0xFFFF_FFFF and long_size:
            size = long_size
        size = max(0, size - (layout.header if layout.inclusive else 0))
        if not _is_name(name, layout):
            return
        yield name, start, size
        position = _end_of_audio(encoded, layout, start, size) if name == layout.data else start + size
        position += -(position - start) % layout.pad if _is_chunk(encoded, layout, position) is False else 0


def _end_of_audio(encoded: bytes, layout: _Layout, start: int, size: int) -> int:
    """Where the audio ends: as announced, or with the file where that is no place for an end."""
    stop, end = start + size, len(encoded)
    if stop >= end:
        return end
    padded = stop + -size % layout.pad
    if any(_is_chunk(encoded, layout, position) for position in (stop, padded)):
        return stop
    return stop if _is_negligible(encoded[stop:], size) else end


def _is_negligible(rest: bytes, size: int) -> bool:
    """Whether what follows `size` bytes of audio is no audio, or next to nothing."""
    return tags.is_no_audio(rest) or len(rest) <= TOLERANCE * size


def _is_chunk(encoded: bytes, layout: _Layout, position: int) -> bool:
    """Whether a chunk that ends within the file, or the end of the file, is at a position."""
    if position >= len(encoded):
        return True
    if position + layout.header > len(encoded):
        return False
    name = encoded[position : position + layout.id_bytes]
    (size,) = struct.unpack_from(layout.size, encoded, position + layout.id_bytes)
    fits = position + size + (0 if layout.inclusive else layout.header) <= len(encoded) + 1
    return _is_name(name, layout) and (fits or name in (layout.data, encoded[:4]))


def _is_name(name: bytes, layout: _Layout) -> bool:
    return bool(re.fullmatch(rb"[ -~]{4}", name[:4])) and (layout is not _W64 or len(name) == 16)


def _is_cut_off(encoded: bytes, layout: _Layout, announced: int, found: int) -> bool:
    """Whether a size that is larger than what is there was once right."""
    if announced >= _STREAMED_SIZE or (announced > _LARGE_SIZE and found < _EARLY * announced):
        return False
    if not layout.outer:
        return True
    (whole,) = struct.unpack_from(layout.size, encoded, layout.outer)
    return whole != 0 and whole + (0 if layout.inclusive else 8) > len(encoded) + 1


def _mend_au(encoded: bytes) -> Mended:
    order = ">" if encoded[:1] == b"." else "<"
    if len(encoded) < 24:
        return Mended(encoded)
    start, announced = struct.unpack_from(f"{order}II", encoded, 4)
    found = len(encoded) - start
    if not 24 <= start <= len(encoded) or announced == found:
        return Mended(encoded)
    cut = found < announced < _STREAMED_SIZE and (announced <= _LARGE_SIZE or found >= _EARLY * announced)
    if announced < found and _is_negligible(encoded[start + announced :], announced):
        return Mended(encoded)
    mended = encoded[:8] + struct.pack(f"{order}I", found) + encoded[12:]
    return Mended(mended, found / announced if cut else 1.0)
