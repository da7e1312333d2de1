"""The same three seconds of sound in many formats, by libsndfile, by ffmpeg and by byte writers; and their defects."""

import functools
import io
import pathlib
import struct
import subprocess

import numpy as np
import soundfile

from mser_jax.corpora import ffmpeg

RATE, SECONDS = 16_000, 3.0
# What ffmpeg is asked for, all in one call: name -> arguments. `pipe` in a name: written to what cannot seek.
BY_FFMPEG = {
    "mp4": "-c:a aac -b:a 128k -f mp4",
    "faststart.m4a": "-c:a aac -b:a 128k -movflags +faststart -f ipod",
    "fragmented.mp4": "-c:a aac -b:a 128k -movflags frag_keyframe+empty_moov -f mp4",
    "alac.mov": "-c:a alac -f mov",
    "amr.3gp": "-ar 8000 -c:a libopencore_amrnb -b:a 12.2k -f 3gp",
    "amr": "-ar 8000 -c:a libopencore_amrnb -b:a 12.2k -f amr",
    "aac": "-c:a aac -b:a 128k -f adts",
    "latm": "-c:a aac -b:a 128k -f latm",
    "ts": "-c:a aac -b:a 128k -f mpegts",
    "mpg": "-c:a mp2 -f mpeg",
    "opus.mkv": "-c:a libopus -f matroska",
    "vorbis.webm": "-c:a libvorbis -f webm",
    "flac.ogg": "-c:a flac -f ogg",
    "wma": "-c:a wmav2 -b:a 128k -f asf",
    "wma.wav": "-c:a wmav2 -b:a 128k -f wav",
    "ac3.wav": "-ar 32000 -c:a ac3 -f wav",
    "g726.wav": "-ar 8000 -c:a g726 -f wav",
    "mp3.wav": "-c:a libmp3lame -b:a 48k -f wav",
    "s64.wav": "-c:a pcm_s64le -f wav",
    "flv": "-ar 22050 -c:a libmp3lame -f flv",
    "avi": "-c:a pcm_s16le -f avi",
    "wv": "-c:a wavpack -f wv",
    "tta": "-c:a tta -f tta",
    "ac3": "-ar 32000 -c:a ac3 -f ac3",
    "voc": "-c:a pcm_s16le -f voc",
    "u8.voc": "-ar 8000 -c:a pcm_u8 -f voc",
    "mp2": "-c:a mp2 -f mp2",
    "ima.aiff": "-c:a adpcm_ima_qt -f aiff",
    "ima.wav": "-c:a adpcm_ima_wav -f wav",
    "sox": "-c:a pcm_s32le -f sox",
    "vbr.mp3": "-c:a libmp3lame -q:a 5 -f mp3",
    "pipe.vbr.mp3": "-c:a libmp3lame -q:a 5 -write_xing 0 -id3v2_version 0 -f mp3",
    "pipe.8k.mp3": "-ar 8000 -c:a libmp3lame -q:a 5 -write_xing 0 -f mp3",
    "pipe.44k.mp3": "-ar 44100 -ac 2 -c:a libmp3lame -q:a 5 -write_xing 0 -f mp3",
    "pipe.flac": "-c:a flac -f flac",
    "pipe.wav": "-c:a pcm_s16le -f wav",
    "pipe.rf64": "-c:a pcm_s16le -rf64 always -f wav",
    "pipe.w64": "-c:a pcm_s16le -f w64",
    "pipe.caf": "-c:a pcm_s16be -f caf",
    "pipe.webm": "-c:a libopus -live 1 -f webm",
    "pipe.mkv": "-c:a pcm_s16le -f matroska",
    "pipe.mp4": "-c:a aac -b:a 128k -movflags frag_keyframe+empty_moov -f mp4",
    "pipe.avi": "-c:a pcm_s16le -f avi",
    "pipe.wma": "-c:a wmav2 -b:a 128k -f asf",
    "pipe.flv": "-ar 22050 -c:a libmp3lame -f flv",
    "pipe.au": "-c:a pcm_s16be -f au",
    "pipe.aiff": "-c:a pcm_s16be -f aiff",
    "pipe.ogg": "-c:a libvorbis -f ogg",
    "pipe.opus": "-c:a libopus -f ogg",
}
# What libsndfile writes: name -> (format, subtype).
BY_LIBSNDFILE = {
    f"{kind.lower()} {subtype.lower()}": (kind, subtype)
    for kind, subtypes in {
        "WAV": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM GSM610 G721_32 NMS_ADPCM_32",
        "WAVEX": "PCM_24 FLOAT",
        "RF64": "PCM_16",
        "W64": "PCM_16 MS_ADPCM",
        "AIFF": "PCM_S8 PCM_16 PCM_24 FLOAT ULAW ALAW",
        "AU": "PCM_16 ULAW FLOAT",
        "CAF": "PCM_16 ALAW ALAC_16",
        "FLAC": "PCM_16 PCM_24",
        "OGG": "VORBIS OPUS",
        "MP3": "MPEG_LAYER_III",
        "NIST": "PCM_16 ULAW",
        "PAF": "PCM_16",
        "PVF": "PCM_16",
        "IRCAM": "PCM_16",
        "SVX": "PCM_16",
        "AVR": "PCM_16",
    }.items()
    for subtype in subtypes.split()
}


@functools.cache
def original() -> np.ndarray:
    """float32 [time] at RATE: gliding tones in bursts, below what telephone coders keep, as no other part of it is."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    bursts = 0.2 + 0.8 * (np.sin(2 * np.pi * (1.1 + 0.3 * time) * time) > -0.3)
    tones = np.sin(2 * np.pi * (300 + 140 * time) * time) + 0.5 * np.sin(2 * np.pi * (900 - 90 * time) * time)
    return (0.35 * bursts * tones).astype(np.float32)


def pcm16(samples: np.ndarray | None = None) -> np.ndarray:
    """int16 of float samples, the original by default."""
    return np.round(32767 * (original() if samples is None else samples)).astype("<i2")


def written(kind: str, subtype: str, samples: np.ndarray | None = None, rate: int = RATE) -> bytes:
    """A file by libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, original() if samples is None else samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def by_ffmpeg(folder: pathlib.Path) -> dict[str, bytes]:
    """All of BY_FFMPEG, and two.mkv: two tracks, the second of another sound; mute.mp4: a picture alone."""
    (folder / "in.wav").write_bytes(written("WAV", "PCM_16"))
    tone, picture = "sine=2000:duration=3:sample_rate=16000", "color=size=32x32:duration=3:rate=5"
    command = [ffmpeg.program(), "-v", "error", "-y", "-i", str(folder / "in.wav")]
    command += ["-f", "lavfi", "-i", tone, "-f", "lavfi", "-i", picture]
    for name, how in BY_FFMPEG.items():
        is_pipe = name.startswith("pipe")
        command += ["-map", "0:a", *how.split(), *(("-seekable", "0") if is_pipe else ()), str(folder / name)]
    command += ["-map", "0:a", "-map", "1:a", "-c:a", "pcm_s16le", str(folder / "two.mkv")]
    command += ["-map", "2:v", "-map", "0:a", "-c:v", "mpeg4", "-c:a", "aac", "-b:a", "128k", str(folder / "video.mp4")]
    command += ["-map", "2:v", "-c:v", "mpeg4", str(folder / "mute.mp4")]
    subprocess.run(command, check=True, timeout=120)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def by_ffmpeg_one(name: str, folder: pathlib.Path) -> bytes:
    """One of BY_FFMPEG."""
    (folder / "in.wav").write_bytes(written("WAV", "PCM_16"))
    command = [ffmpeg.program(), "-v", "error", "-y", "-i", str(folder / "in.wav"), *BY_FFMPEG[name].split()]
    return subprocess.run([*command, str(folder / name)], check=True, timeout=60) and (folder / name).read_bytes()


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    """A chunk of RIFF, padded to an even length; `size`: what its header says."""
    return name + struct.pack("<I", len(content) if size is None else size) + content + bytes(len(content) % 2)


def fmt(tag: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16) -> bytes:
    """A chunk "fmt "."""
    frame = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits))


def riff(*chunks: bytes, size: int | None = None, form: bytes = b"RIFF") -> bytes:
    """A WAV of these chunks; `size`: what its header says."""
    body = b"WAVE" + b"".join(chunks)
    return form + struct.pack("<I", len(body) if size is None else size) + body


def wav(samples: np.ndarray, **fields: int) -> bytes:
    """A WAV of 16-bit samples [time] or [time, channels]."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    return riff(fmt(channels=channels, **fields), chunk(b"data", samples.astype("<i2").tobytes()))


def id3(size: int) -> bytes:
    """An ID3v2 tag with a cover of `size` bytes, in which sync words of MPEG audio stand."""
    picture = (
        np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()[: max(0, size - 4)] + b"\xff\xfb\x90\x44"
    )
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    length = len(frame)
    return b"ID3\3\0\0" + bytes(length >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame


def with_flac_total(flac: bytes, total: int) -> bytes:
    """A FLAC whose header announces `total` samples, 0 = unknown."""
    fields = int.from_bytes(flac[18:26], "big") >> 36 << 36 | total
    return flac[:18] + fields.to_bytes(8, "big") + flac[26:]


def likeness(waveform: np.ndarray, expected: np.ndarray | None = None) -> float:
    """The largest correlation of int16 [time] with the original, over shifts of up to 0.15 s."""
    expected = original() if expected is None else expected
    waveform, expected = (samples - samples.mean(dtype=np.float64) for samples in (waveform, expected))
    size = 1 << (len(waveform) + len(expected)).bit_length()
    ours, theirs = (np.fft.rfft(samples, size) for samples in (waveform, expected))
    products = np.fft.irfft(ours * theirs.conj(), size)
    limit = round(0.15 * RATE)
    best = max(products[:limit].max(), products[-limit:].max())
    return float(best / np.linalg.norm(waveform) / np.linalg.norm(expected))
