"""What a file is by its first bytes: names and suffixes lie."""

from __future__ import annotations

import enum
import re

from mser_jax.corpora.decoding import mp3


class Decoder(enum.Enum):
    """Who decodes a file first."""

    LIBSNDFILE = enum.auto()
    MP3 = enum.auto()  # libsndfile, once the frames are counted
    FFMPEG = enum.auto()


# First bytes -> who decodes, and the demuxer that ffmpeg is told to use: never one that it guesses, as several of them
# open other files and hosts that the content names (playlists).
_SIGNATURES: tuple[tuple[bytes, Decoder, str], ...] = (
    (rb"(?:RIFF|RIFX|RF64|BW64)....WAVE", Decoder.LIBSNDFILE, "wav"),
    (rb"riff\x2e\x91\xcf\x11", Decoder.LIBSNDFILE, "w64"),
    (rb"FORM....AIF[FC]", Decoder.LIBSNDFILE, "aiff"),
    (rb"FORM....(?:8SVX|16SV)", Decoder.LIBSNDFILE, "iff"),
    (rb"\.snd|dns\.", Decoder.LIBSNDFILE, "au"),
    (rb"fLaC", Decoder.LIBSNDFILE, "flac"),
    (rb"OggS.{24,80}?(?:\x01vorbis|OpusHead)", Decoder.LIBSNDFILE, "ogg"),
    (rb"OggS", Decoder.FFMPEG, "ogg"),  # Speex, FLAC, Theora
    (rb"caff", Decoder.LIBSNDFILE, "caf"),
    (rb"NIST_1A\n", Decoder.LIBSNDFILE, "nistsphere"),
    (rb"Creative Voice File\x1a", Decoder.FFMPEG, "voc"),  # libsndfile takes headers between blocks for samples
    (rb"PVF1\n", Decoder.LIBSNDFILE, "pvf"),
    (rb" paf|fap ", Decoder.LIBSNDFILE, "paf"),
    (rb"\x64\xa3[\x00-\x04]\x00|\x00[\x00-\x04]\xa3\x64", Decoder.LIBSNDFILE, "ircam"),
    (rb"2BIT", Decoder.LIBSNDFILE, "avr"),
    (rb"RIFF....AVI ", Decoder.FFMPEG, "avi"),
    (rb"RIFF....XWMA", Decoder.FFMPEG, "xwma"),
    (rb"[\x00-\x07]...(?:ftyp|moov|wide|free|skip|pnot)|....mdat", Decoder.FFMPEG, "mov"),
    (rb"\x1a\x45\xdf\xa3", Decoder.FFMPEG, "matroska"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Decoder.FFMPEG, "asf"),
    (rb"FLV\x01", Decoder.FFMPEG, "flv"),
    (rb"#!AMR", Decoder.FFMPEG, "amr"),
    (rb"\x00\x00\x01\xba", Decoder.FFMPEG, "mpeg"),
    (rb"\x47.{187}\x47.{187}\x47", Decoder.FFMPEG, "mpegts"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", Decoder.FFMPEG, "aac"),
    (rb"\x56[\xe0-\xff]", Decoder.FFMPEG, "loas"),
    (rb"\.SoX|XoS\.", Decoder.FFMPEG, "sox"),
    (rb"\xb7\xd8\x00\x20\x37\x49\xda\x11", Decoder.FFMPEG, "wtv"),
    (rb"\.RMF", Decoder.FFMPEG, "rm"),
    (rb"wvpk", Decoder.FFMPEG, "wv"),
    (rb"MAC ", Decoder.FFMPEG, "ape"),
    (rb"TTA1", Decoder.FFMPEG, "tta"),
    (rb"tBaK", Decoder.FFMPEG, "tak"),
    (rb"MPCK", Decoder.FFMPEG, "mpc8"),
    (rb"MP\+", Decoder.FFMPEG, "mpc"),
    (rb"DSD ", Decoder.FFMPEG, "dsf"),
    (rb"\x0b\x77", Decoder.FFMPEG, "ac3"),
    (rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80", Decoder.FFMPEG, "dts"),
    (rb"\x06\x0e\x2b\x34\x02\x05\x01\x01", Decoder.FFMPEG, "mxf"),
)
_SIGNATURE = re.compile(b"|".join(b"(%s)" % pattern for pattern, _, _ in _SIGNATURES), re.DOTALL)

# First bytes of what is often found under the name of a recording -> what it is and what to do.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a pointer of Git LFS and not the recording; run git lfs pull in the source"),
    (
        rb"\x1f\x8b|PK\x03\x04|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd",
        "an archive or compressed; unpack it first",
    ),
    (rb"#EXTM3U|ffconcat|\[playlist\]", "a playlist and no recording; give the recordings that it lists"),
    (rb"MThd", "MIDI, notes and no recording"),
    (rb"\x02?#!SILK", "SILK of a messenger, which no decoder here reads; convert it to wav first"),
    (rb"\x93NUMPY|\x80[\x02-\x05]", "arrays of Python and no recording"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|%PDF", "a picture or document and no recording"),
)
_OTHER = re.compile(b"|".join(b"(%s)" % pattern for pattern, _ in _OTHERS), re.DOTALL)
_TEXT_BYTES = bytes({7, 8, 9, 10, 12, 13, 27} | set(range(0x20, 0x7F)) | set(range(0x80, 0x100)))


def kind(encoded: bytes) -> tuple[Decoder, str] | None:
    """Tell who decodes a file, and the name of its demuxer in ffmpeg; None where the bytes are no known format."""
    if match := _SIGNATURE.match(encoded):
        return _SIGNATURES[match.lastindex - 1][1:]
    if not _OTHER.match(encoded) and mp3.first_frame(encoded) >= 0:
        return Decoder.MP3, "mp3"
    return None


def advice(encoded: bytes) -> str:
    """Say what a file of no known format seems to be, and what to do."""
    if match := _OTHER.match(encoded):
        return _OTHERS[match.lastindex - 1][1]
    head = encoded[:400]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or not head.translate(None, _TEXT_BYTES):
        codec = "utf-16" if head[:1] in b"\xff\xfe" else "utf-8"
        words = " ".join(head.decode(codec, "replace").split())
        return f"text and no recording, perhaps the message of a download that failed: {words[:60]!r}"
    if not encoded.strip(b"\0"):
        return f"{len(encoded)} zero bytes, as of a copy that was cut off; copy it again"
    return (
        f"no audio format that is known here, it begins with {head[:8].hex(' ')}; samples without a header need one: "
        "sox -t raw -r RATE -e signed -b 16 -c 1 IN OUT.wav"
    )
