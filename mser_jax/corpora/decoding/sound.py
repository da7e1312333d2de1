"""From the bytes of a file to blocks of samples, read to their end: libsndfile, and ffmpeg where that cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import soundfile

from mser_jax.corpora import ffmpeg
from mser_jax.corpora.decoding import chunked, content, links, mp3, tags
from mser_jax.corpora.decoding.errors import BadAudio, Reason

BLOCK = 1 << 16  # samples of all channels together that are read at once
# WAVE_FORMAT_…: MPEG, MPEGLAYER3; and PCM, ADPCM, float, A-law, µ-law, IMA, GSM 6.10, NMS, G.721, G.723, EXTENSIBLE; 0
# is for files without a format, of which libsndfile says what is wrong.
_WAVE_MPEG = (0x50, 0x55)
_WAVE_LIBSNDFILE = (0, 1, 2, 3, 6, 7, 0x11, 0x14, 0x31, 0x38, 0x40, 0x64, 0xFFFE)
_CAF_LIBSNDFILE = (b"lpcm", b"ulaw", b"alaw", b"alac")
_FLAC_HEADER = 42  # bytes
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's word for a length that is not announced is larger
_MPEG_PADDING = 0.3  # seconds that encoders may add: two frames at 8 kHz


@dataclasses.dataclass(frozen=True)
class Sound:
    """rate: Hz. blocks: [time, channels] each, int16 where the file holds just that, else float32 of full scale 1.

    Reading the blocks raises BadAudio where the file turns out to be damaged or cut off.
    """

    rate: int
    channels: int
    blocks: Iterator[np.ndarray]


class _Stream(soundfile.SoundFile):
    """A file that is read once, from its start.

    soundfile takes the announced length for the real one and seeks after each read, which block codecs refuse, in all
    that is seekable.
    """

    def seekable(self) -> bool:
        return False


class _Bytes(io.BytesIO):
    """A file in memory in which damaged headers may point before its start."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: len(self.getbuffer())}[whence]
        return super().seek(min(max(0, base + offset), sys.maxsize))


class _ForFfmpegError(Exception):
    """The file is in order, and nothing for libsndfile."""


@contextlib.contextmanager
def opened(encoded: bytes, name: str) -> Iterator[Sound]:
    """Open a file of any known format.

    Args:
        encoded: the whole file.
        name: of the file, for messages.

    Raises:
        BadAudio: empty, no audio, damaged, or cut off; also while the blocks are read.
        MissingFfmpegError: the file needs ffmpeg and there is none; names the file.
    """
    if not encoded:
        raise BadAudio(Reason.EMPTY, "0 bytes")
    whole, encoded = encoded, tags.without_first(encoded)
    if (kind := content.kind(encoded)) is None:
        is_tag = encoded is not whole and tags.end_of_tags(whole) >= len(whole)
        raise BadAudio(Reason.UNREADABLE, "a tag and no recording" if is_tag else content.advice(encoded))
    decoder, demuxer = kind
    with contextlib.ExitStack() as stack:
        sound, trouble = None, ""
        if decoder is content.Decoder.FFMPEG and demuxer == "ogg":
            links.ogg(encoded)  # whether it was cut off
        if decoder is not content.Decoder.FFMPEG:
            if demuxer not in ("mp3", "flac", "ogg"):
                encoded = _mended(encoded)
            try:
                sound = _by_libsndfile(encoded, demuxer)
            except soundfile.SoundFileError as error:
                trouble = f"libsndfile: {_words(error)}; "
            except _ForFfmpegError:
                pass
        yield sound or stack.enter_context(_by_ffmpeg(encoded, demuxer, name, trouble))


def _mended(encoded: bytes) -> bytes:
    mended = chunked.mend(encoded)
    if mended.there < 1 - chunked.TOLERANCE:
        raise BadAudio(Reason.TRUNCATED, f"{mended.there:.0%} of the announced audio is there")
    return mended.encoded


def _by_libsndfile(encoded: bytes, demuxer: str) -> Sound:
    """Raises SoundFileError: libsndfile does not open it. BadAudio: cut off. _ForFfmpegError: it never would."""
    if demuxer == "mp3":
        return _mpeg(encoded)
    if demuxer == "flac":
        return _joined([_flac(part) for part in links.flac(tags.without_last(encoded))])
    if demuxer == "ogg":
        if (parts := links.ogg(encoded)) is None:
            raise _ForFfmpegError
        return _joined([_announced(part) for part in parts])
    if demuxer == "wav":
        tag, audio = chunked.wave_format(encoded)
        if tag in _WAVE_MPEG and mp3.first_frame(audio) >= 0:
            return _mpeg(audio)
        if tag not in _WAVE_LIBSNDFILE:
            raise _ForFfmpegError
    if demuxer == "caf" and encoded[8:12] == b"desc" and encoded[28:32] not in _CAF_LIBSNDFILE:
        raise _ForFfmpegError
    return _announced(encoded)


def _mpeg(encoded: bytes) -> Sound:
    stream = mp3.frames(encoded)
    if stream.counted < (1 - chunked.TOLERANCE) * stream.announced:
        there = f"{stream.counted / stream.announced:.0%}"
        raise BadAudio(Reason.TRUNCATED, f"{there} of the announced frames of MPEG audio are there")
    if stream.lost > chunked.TOLERANCE * len(encoded):
        raise BadAudio(Reason.UNREADABLE, f"{stream.lost} bytes are no frames of the MPEG audio: damaged, or joined")
    file = _Stream(_Bytes(stream.encoded))
    # Decoders leave out what the encoder put before and after.
    least = (1 - chunked.TOLERANCE) * stream.seconds - _MPEG_PADDING
    return Sound(file.samplerate, file.channels, _blocks(file, round(least * file.samplerate)))


def _flac(encoded: bytes) -> Sound:
    if len(encoded) < _FLAC_HEADER:
        raise BadAudio(Reason.TRUNCATED, "the file ends within the header of FLAC")
    announced = links.flac_frames(encoded)
    data = _Bytes(links.flac_of_unknown_length(encoded))
    file = _Stream(data)

    def blocks() -> Iterator[np.ndarray]:
        if announced:
            yield from _blocks(file, round((1 - chunked.TOLERANCE) * announced), announced)
        rest = len(encoded) - data.tell()
        try:
            yield from _blocks(file)
        except BadAudio:
            if not announced or rest > chunked.TOLERANCE * len(encoded):
                raise  # else what follows is no audio

    return Sound(file.samplerate, file.channels, blocks())


def _announced(encoded: bytes) -> Sound:
    """A file whose announced length is that of its audio, or more."""
    file = _Stream(_Bytes(encoded))
    announced = file.frames if file.frames < _UNKNOWN_FRAMES else 0
    if encoded.startswith(b"NIST_1A") and (stated := re.search(rb"sample_count -i (\d{1,12})", encoded[:4096])):
        announced = int(stated[1])  # libsndfile goes by the size of the file
    return Sound(file.samplerate, file.channels, _blocks(file, round((1 - chunked.TOLERANCE) * announced)))


def _joined(sounds: Sequence[Sound]) -> Sound:
    first = sounds[0]
    if any((sound.rate, sound.channels) != (first.rate, first.channels) for sound in sounds):
        raise BadAudio(Reason.UNREADABLE, "several recordings of different formats, joined to one file; split it")
    return Sound(first.rate, first.channels, itertools.chain.from_iterable(sound.blocks for sound in sounds))


def _blocks(file: soundfile.SoundFile, least: int = 0, most: int = _UNKNOWN_FRAMES) -> Iterator[np.ndarray]:
    """Read a file on, at most `most` frames of it.

    Raises:
        BadAudio: it is damaged, or ends before `least` frames.
    """
    dtype = "int16" if file.subtype == "PCM_16" else "float32"
    count, size = 0, max(1, BLOCK // file.channels)
    while count < most:
        try:
            block = file.read(min(size, most - count), dtype=dtype, always_2d=True)
        except soundfile.SoundFileError as error:
            reason = Reason.TRUNCATED if "lost sync" in str(error) else Reason.UNREADABLE
            raise BadAudio(reason, f"libsndfile after {count / file.samplerate:.2f} s: {_words(error)}") from error
        if not len(block):
            break
        count += len(block)
        yield block
    if count < least:
        raise BadAudio(
            Reason.TRUNCATED, f"{count / max(least, 1) * (1 - chunked.TOLERANCE):.0%} of the announced audio is there"
        )


def _words(error: soundfile.SoundFileError) -> str:
    return getattr(error, "error_string", str(error))


@contextlib.contextmanager
def _by_ffmpeg(encoded: bytes, demuxer: str, name: str, trouble: str) -> Iterator[Sound]:
    """Decode by ffmpeg. trouble: why libsndfile could not, "" where the file is nothing for libsndfile."""

    def blocks(found: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        with _told(name, trouble):
            yield from found

    with contextlib.ExitStack() as stack:
        with _told(name, trouble):
            rate, channels, found = stack.enter_context(ffmpeg.decoded(encoded, demuxer))
        yield Sound(rate, channels, blocks(found))


@contextlib.contextmanager
def _told(name: str, trouble: str) -> Iterator[None]:
    """Tell ffmpeg's errors in the words of this module."""
    try:
        yield
    except ffmpeg.MissingFfmpegError as error:
        if not trouble:
            raise ffmpeg.MissingFfmpegError(f"{name}: {error}") from error
        raise BadAudio(Reason.UNREADABLE, f"{trouble}ffmpeg is not here to be asked") from error
    except ffmpeg.NoAudioError as error:
        raise BadAudio(Reason.NO_AUDIO, str(error)) from error
    except ffmpeg.CutOffError as error:
        raise BadAudio(Reason.TRUNCATED, str(error)) from error
    except ffmpeg.DecodingError as error:
        raise BadAudio(Reason.UNREADABLE, f"{trouble}{error}") from error
