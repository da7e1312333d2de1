"""Any format with any defect: the whole sound, or the reason why not. Never less of it, never another error."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
import sound_files as files

from mser_jax.corpora import audio_check, ffmpeg
from mser_jax.corpora.audio_check import Reason

# What coders of telephones keep of the sound, and how much longer others make it (frames, padding).
LIKENESS = {"amr.3gp": 0.93, "amr": 0.93, "u8.voc": 0.97}
SHORTER = {"wma": 0.03, "pipe.wma": 0.03, "wma.wav": 0.03}
PADDING = 0.15


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    return files.by_ffmpeg(tmp_path_factory.mktemp("formats"))


def refused(audio):
    """(reason, detail), the detail one line."""
    with pytest.raises(audio_check.BadAudio) as caught:
        audio_check.load(audio)
    assert caught.value.detail and "\n" not in caught.value.detail
    return caught.value.reason, caught.value.detail


def check(audio, seconds=files.SECONDS, *, times=1, least=0.985, padding=PADDING, shorter=0.01):
    """The sound is there whole, `times` times."""
    waveform, info = audio_check.load(audio)
    assert times * seconds - shorter <= info.duration_s <= times * (seconds + padding), info
    expected = np.tile(files.original()[: round(seconds * files.RATE)], times)
    assert files.likeness(waveform, expected) >= (least if times == 1 else 0.5 * least)
    return info


@pytest.mark.parametrize("name", files.BY_LIBSNDFILE)
def test_what_libsndfile_writes(name):
    check(files.written(*files.BY_LIBSNDFILE[name]))


@pytest.mark.parametrize("name", [*files.BY_FFMPEG, "video.mp4", "two.mkv"])
def test_what_ffmpeg_writes(encoded, name):
    check(encoded[name], least=LIKENESS.get(name, 0.985), shorter=SHORTER.get(name, 0.01))


CUT = [name for name in files.BY_FFMPEG if name not in ("amr", "aac", "latm", "ts", "mpg", "ac3", "mp2")]


@pytest.mark.parametrize("name", [name for name in CUT if "pipe" not in name or "ogg" in name])
def test_half_of_a_file_that_knows_its_length(encoded, name):
    assert refused(encoded[name][: len(encoded[name]) // 2])[0] in (
        Reason.TRUNCATED,
        *((Reason.UNREADABLE,) * (name == "tta")),
    )


def test_a_short_mp3_within_wav(tmp_path):
    """Its announced length, an estimate, is half as long again as its frames are."""
    sound = files.original()[: round(0.3 * files.RATE)]
    frames = files.written("MP3", "MPEG_LAYER_III", sound)
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, files.RATE, 4_000, 1, 0, 12, 1, 2, 576, 1, 0)
    _, info = audio_check.load(files.riff(files.chunk(b"fmt ", form), files.chunk(b"data", frames)))
    assert 0.3 <= info.duration_s <= 0.45


def defects():
    """name -> (bytes, what is expected: seconds of the sound, how often it comes, or a Reason)."""
    sound, audio = files.pcm16(), files.pcm16().tobytes()
    ours, data = files.wav(sound), files.chunk(b"data", files.pcm16().tobytes())
    flac, ogg, mp3 = (files.written(*files.BY_LIBSNDFILE[name]) for name in FIRST)
    noise = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()
    half, junk = len(audio) // 2, files.chunk(b"LIST", b"INFOISFT" + bytes(500))
    stereo = np.stack([sound, -sound], 1)

    def sized(size, outer=None):
        return files.riff(files.fmt(), files.chunk(b"data", audio, size), size=size + 36 if outer is None else outer)

    yield from {
        # Sizes that were never filled in, or are wrong.
        **{f"data of {size}": (sized(size, min(size + 36, 0xFFFFFFFF)), WHOLE) for size in (*UNKNOWN_SIZES,)},
        "data of 0, riff of 0": (sized(0, 0), WHOLE),
        "data of 0, riff right": (sized(0, len(audio) + 36), WHOLE),
        "half is announced": (sized(half), WHOLE),
        "half is announced, riff right": (sized(half, len(audio) + 36), WHOLE),
        "twice as much is announced": (sized(2 * len(audio)), Reason.TRUNCATED),
        "twice as much is announced, riff right": (sized(2 * len(audio), len(audio) + 36), WHOLE),
        "riff of 0": (sized(len(audio), 0), WHOLE),
        "cut off": (ours[: len(ours) // 2], Reason.TRUNCATED),
        "cut off by a third of a percent": (ours[: -len(ours) // 333], WHOLE),
        "cut off within a header": (ours[:30], (Reason.UNREADABLE, Reason.TRUNCATED)),
        # Chunks.
        "LIST before": (files.riff(files.fmt(), junk, data), WHOLE),
        "LIST of odd length before": (files.riff(files.fmt(), files.chunk(b"LIST", b"INFOx"), data), WHOLE),
        "LIST after": (files.riff(files.fmt(), data, junk), WHOLE),
        "data before fmt": (files.riff(data, files.fmt()), WHOLE),
        "no fmt": (files.riff(data), Reason.UNREADABLE),
        "no data": (files.riff(files.fmt(), junk), Reason.UNREADABLE),
        "two chunks of data": (files.riff(files.fmt(), data, data), 2),
        "odd length": (files.riff(files.fmt(bits=8), files.chunk(b"data", unsigned(sound)[:-1])), WHOLE),
        "odd length, no pad": (
            files.riff(files.fmt(bits=8), files.chunk(b"data", unsigned(sound)[:-1])[:-1], junk),
            WHOLE,
        ),
        "half a sample at the end": (files.riff(files.fmt(), files.chunk(b"data", audio + b"x")), WHOLE),
        "zeros after": (ours + bytes(9_999), WHOLE),
        "ID3v1 after": (ours + b"TAG" + bytes(125), WHOLE),
        # Joined.
        "two WAVs joined": (ours + ours, 2),
        "WAVs of two rates joined": (ours + files.wav(sound, rate=8_000), Reason.UNREADABLE),
        "two FLACs joined": (flac + flac, 2),
        "two Oggs joined": (ogg + ogg, 2),
        "two MP3s joined": (mp3 + mp3, 2),
        "MP3s with covers joined": (files.id3(9_000) + mp3 + files.id3(9_000) + mp3, 2),
        "MP3s of two rates joined": (mp3 + files.written("MP3", "MPEG_LAYER_III", rate=24_000), Reason.UNREADABLE),
        # What FLAC announces.
        "FLAC of unknown length": (files.with_flac_total(flac, 0), WHOLE),
        "FLAC of half the length": (files.with_flac_total(flac, len(sound) // 2), WHOLE),
        "FLAC of twice the length": (files.with_flac_total(flac, 2 * len(sound)), Reason.TRUNCATED),
        "FLAC of 2^36 - 1 samples": (files.with_flac_total(flac, 2**36 - 1), Reason.TRUNCATED),
        "FLAC of unknown length, tag after": (files.with_flac_total(flac, 0) + b"TAG" + bytes(125), WHOLE),
        "FLAC, rubbish after": (flac + noise[: len(flac) // 200], WHOLE),
        "FLAC, damaged": (
            flac[: len(flac) // 2] + bytes(500) + flac[len(flac) // 2 + 500 :],
            (Reason.TRUNCATED, Reason.UNREADABLE),
        ),
        "FLAC cut off": (flac[: len(flac) // 2], Reason.TRUNCATED),
        "Ogg cut off": (ogg[: len(ogg) // 2], Reason.TRUNCATED),
        "Ogg, damaged": (
            ogg[: len(ogg) // 2] + bytes(100) + ogg[len(ogg) // 2 + 100 :],
            (Reason.TRUNCATED, Reason.UNREADABLE),
        ),
        "MP3 cut off": (mp3[: len(mp3) // 2], Reason.TRUNCATED),
        "MP3, damaged": (mp3[:3000] + noise[:900] + mp3[3900:], (Reason.TRUNCATED, Reason.UNREADABLE)),
        # Before the first byte.
        **{
            f"ID3 before {name}": (files.id3(300) + what, WHOLE)
            for name, what in zip(["wav", "flac", "ogg", "mp3"], (ours, flac, ogg, mp3), strict=True)
        },
        "a large cover before MP3": (files.id3(1_500_000) + mp3, WHOLE),
        "two tags before FLAC": (files.id3(100) + files.id3(3_000) + flac, WHOLE),
        "a tag that is longer than its file": (b"ID3\3\0\0\x7f\x7f\x7f\x7f" + mp3, WHOLE),
        "rubbish before MP3": (noise + mp3, WHOLE),
        "zeros before MP3": (bytes(4_000) + mp3, WHOLE),
        # No recording at all.
        "raw samples": (audio, Reason.UNREADABLE),
        "raw noise": (noise, Reason.UNREADABLE),
        "zeros": (bytes(5_000), Reason.UNREADABLE),
        "nothing": (b"", Reason.EMPTY),
        "one byte": (b"R", Reason.UNREADABLE),
        "HTML": (b"<!DOCTYPE html><html><title>404 Not Found</title></html>\n" * 40, Reason.UNREADABLE),
        "JSON": (b'{"error": "quota exceeded"}', Reason.UNREADABLE),
        "UTF-16": ("nicht gefunden".encode("utf-16"), Reason.UNREADABLE),
        "gzip": (gzip.compress(ours), Reason.UNREADABLE),
        "zip": (zipped(ours), Reason.UNREADABLE),
        "pointer of LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n", Reason.UNREADABLE),
        "only a tag": (files.id3(2_000), Reason.UNREADABLE),
        "playlist": (b"#EXTM3U\n#EXTINF:3,\nsecret.wav\n#EXT-X-ENDLIST\n", Reason.UNREADABLE),
        "MIDI": (b"MThd" + noise, Reason.UNREADABLE),
        # Numbers of the header.
        "no samples, LIST after": (files.riff(files.fmt(), files.chunk(b"data", b""), junk), Reason.EMPTY),
        "text that begins as a box of video": (b"The free encyclopedia is not available now. " * 9, Reason.UNREADABLE),
        "no samples": (files.wav(sound[:0]), Reason.EMPTY),
        "FLAC of no samples": (files.written("FLAC", "PCM_16", np.zeros(0, np.float32)), Reason.EMPTY),
        "rate of 0": (files.wav(sound, rate=0), (Reason.SAMPLING_RATE, Reason.UNREADABLE)),
        "7,999 Hz": (files.wav(sound, rate=7_999), Reason.SAMPLING_RATE),
        "96,001 Hz": (files.wav(sound, rate=96_001), Reason.SAMPLING_RATE),
        "4 GHz": (files.wav(sound, rate=2**32 - 1), (Reason.SAMPLING_RATE, Reason.UNREADABLE)),
        "no channels": (files.riff(files.fmt(channels=0), data), (Reason.UNREADABLE, Reason.EMPTY)),
        "255 channels": (files.wav(np.repeat(sound[:, None], 255, axis=1)), WHOLE),
        "65,535 channels": (
            files.riff(files.fmt(channels=65_535), data),
            (Reason.UNREADABLE, Reason.EMPTY, Reason.TOO_SHORT),
        ),
        "no bits": (files.riff(files.fmt(bits=0), data), (Reason.UNREADABLE, Reason.EMPTY)),
        "0.09 s": (files.wav(sound[:1440]), Reason.TOO_SHORT),
        # Samples.
        "opposed": (files.wav(stereo), Reason.OPPOSED_CHANNELS),
        "nearly opposed": (files.wav(np.stack([sound, -sound * 0.95], 1)), Reason.OPPOSED_CHANNELS),
        "opposed on an offset": (files.wav(stereo // 2 + 9_000), Reason.OPPOSED_CHANNELS),
        "opposed FLAC": (files.written("FLAC", "PCM_24", stereo / 32768), Reason.OPPOSED_CHANNELS),
        "both silent": (files.wav(0 * stereo), Reason.SILENT),
        "one channel is silent": (files.wav(stereo * [1, 0]), WHOLE),
        "five of six channels are silent": (files.wav(np.stack([0 * sound] * 2 + [sound] + [0 * sound] * 3, 1)), WHOLE),
        "offset": (files.written("WAV", "FLOAT", files.original() + 0.5), WHOLE),
        "clipped": (files.wav(np.clip(sound * 1.5, -32768, 32767)), WHOLE),
        "NaN": (
            files.written("WAV", "FLOAT", np.where(np.arange(len(sound)) == 99, np.nan, files.original())),
            Reason.NOT_FINITE,
        ),
        "infinite": (files.written("WAV", "DOUBLE", 1e300 * files.original().astype(np.float64)), Reason.NOT_FINITE),
    }.items()


WHOLE = 1
FIRST = ("flac pcm_16", "ogg vorbis", "mp3 mpeg_layer_iii")
UNKNOWN_SIZES = (0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 2_000_000_000, 1_000_000_000, 0xFFFFFFFF, 0xFFFFFFD8)


def unsigned(sound):
    return ((sound.astype(int) >> 8) + 128).astype(np.uint8).tobytes()


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.wav", content)
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "expected"), [pytest.param(*case, id=name) for name, case in defects()])
def test_defects(content, expected):
    if isinstance(expected, int):
        check(content, times=expected, least=0.95)
    else:
        assert refused(content)[0] in (expected if isinstance(expected, tuple) else (expected,))


def test_a_machine_without_ffmpeg_says_the_same(monkeypatch):
    def none():
        raise ffmpeg.MissingFfmpegError("there is none")

    monkeypatch.setattr(ffmpeg, "program", none)
    for name, (encoded, expected) in defects():
        try:
            found = round(audio_check.load(encoded)[1].duration_s / files.SECONDS)
        except audio_check.BadAudio as bad:
            found = bad.reason
        assert found in (expected if isinstance(expected, tuple) else (expected,)), name
