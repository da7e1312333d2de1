"""Files that would hang, fill memory or open others; and what a machine without ffmpeg makes of the rest."""

import contextlib
import os
import pathlib
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import sound_files as files

from mser_jax.corpora import audio_check, ffmpeg
from mser_jax.corpora.audio_check import Reason
from mser_jax.corpora.decoding import content

MPD = """<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S" minBufferTime="PT1S"
profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="audio/mp4"><Representation id="1"
bandwidth="9"><BaseURL>SECRET</BaseURL></Representation></AdaptationSet></Period></MPD>"""
# Files that name others. Some begin as video does, and ffmpeg, when it guesses, takes them for playlists all the same.
PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nSECRET\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile 'SECRET'\n",
    "dash": MPD,
    "dash as video": f"<!--free-->\n{MPD}",
    "concat as video": "#!AMR\nffconcat version 1.0\nfile 'SECRET'\n",
    "sdp as video": "FLV\1\nv=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio PORT RTP/AVP 0\n",
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">SECRET',
    "pls": "[playlist]\nFile1=SECRET\n",
    "smil": "<smil><body><audio src='SECRET'/></body></smil>",
}


def refused(audio):
    with pytest.raises(audio_check.BadAudio) as caught:
        audio_check.load(audio)
    assert caught.value.detail and "\n" not in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("name", ["list.wav", "list.m3u8"])
def test_a_playlist_opens_no_other_file(tmp_path, kind, name):
    (tmp_path / "secret.mp4").write_bytes(secret := files.written("WAV", "PCM_16"))
    assert secret
    text = PLAYLISTS[kind].replace("SECRET", str(tmp_path / "secret.mp4"))
    (tmp_path / name).write_text(text)
    assert refused(tmp_path / name) in (Reason.UNREADABLE, Reason.TRUNCATED, Reason.EMPTY)


def test_a_description_of_a_stream_opens_no_port(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(PLAYLISTS["sdp as video"].replace("PORT", str(port)).encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))


@pytest.mark.parametrize("demuxer", ["hls", "concat", "dash"])
def test_ffmpeg_itself_may_open_one_file(tmp_path, monkeypatch, demuxer):
    """Also where a format of this kind got on the list of those that are let through."""
    (tmp_path / "secret.wav").write_bytes(files.written("WAV", "PCM_16"))
    text = PLAYLISTS[demuxer].replace("SECRET", str(tmp_path / "secret.wav"))
    command = ffmpeg._command("x", demuxer)
    assert command[command.index("-protocol_whitelist") + 1] == "file,pipe"
    assert command[command.index("-format_whitelist") + 1] == demuxer == command[command.index("-f") + 1]
    with pytest.raises(ValueError), ffmpeg.decoded(text.encode(), demuxer) as (_, _, blocks):
        list(blocks)


def test_no_format_that_names_other_files_is_let_through():
    named = {demuxer for _, _, demuxer in content._SIGNATURES}
    assert not named & {"hls", "dash", "concat", "sdp", "rtsp", "rtp", "imf", "image2", "webm_dash_manifest", "mpjpeg"}


def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "pipe.wav")
    (tmp_path / "round.wav").symlink_to(tmp_path / "round.wav")
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "file").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.wav"))
        expected = {
            tmp_path: "a folder", tmp_path / "pipe.wav": "a named pipe", tmp_path / "link.wav": "a named pipe",
            "/dev/zero": "a device", "/dev/null": "a device", tmp_path / "socket.wav": "a socket",
            tmp_path / "round.wav": "leads back to itself", tmp_path / "dangling.wav": "no such file",
            tmp_path / "file" / "a.wav": "no such file", tmp_path / ("x" * 300): "too long", "a\0b": "no such file",
        }  # fmt: skip
        if pathlib.Path("/proc/kmsg").exists():
            expected["/proc/kmsg"] = "0 bytes"  # said to be a regular file, reading waits for ever
        for path, said in expected.items():
            with pytest.raises(audio_check.BadAudio, match=said):
                audio_check.load(path)


def test_storage_that_refuses_is_nobodys_bad_recording(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(files.written("WAV", "PCM_16"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything
        monkeypatch.setattr(type(audio_check.epath.Path(path)), "read_bytes", _forbidden)
    with pytest.raises(PermissionError, match="Permission denied"):
        audio_check.load(path)


def _forbidden(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_a_storage_without_its_library_is_nobodys_bad_recording(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(OSError, match=r"s3://bucket/a\.wav: Install s3fs"):
        audio_check.load("s3://bucket/a.wav")


@pytest.mark.filterwarnings("error")
def test_samples_that_are_not_finite_are_told_once():
    sound = np.stack([files.original()] * 2, 1)
    sound[100], sound[200], sound[300] = (np.inf, -np.inf), (3e38, 3e38), np.nan
    assert refused(files.written("WAV", "FLOAT", sound)) == Reason.NOT_FINITE


def test_standard_input_that_is_a_pipe_is_refused():
    program = (
        "from mser_jax.corpora import audio_check as a\ntry: a.load('/dev/stdin')\nexcept a.BadAudio as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=b"RIFF" * 100, capture_output=True, timeout=60)
    assert done.stdout == b"unreadable: a named pipe and no file\n", done.stderr


def test_what_a_header_claims_takes_no_memory():
    """Announced lengths that are larger than any memory, in a process that may have 1 GiB more than it has."""
    program = """
        import resource, struct, numpy as np
        import sound_files as files
        from mser_jax.corpora import audio_check
        flac = files.written("FLAC", "PCM_16")
        huge = [files.with_flac_total(flac, total) for total in (0, 2**36 - 1)]
        huge += [files.riff(files.fmt(channels=c), files.chunk(b"data", bytes(9_000), 2**31)) for c in (1, 1024)]
        huge += [b"OggS" + flac, b"wvpk" + struct.pack("<IHHII", 2**31, 0x410, 0, 2**31, 0) + bytes(9_000)]
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30,) * 2)
        for encoded in huge:
            try: print(audio_check.load(encoded)[1].duration_s)
            except audio_check.BadAudio as bad: print(bad.reason)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    assert done.stdout.split() == ["3.0", "truncated", "silent", "too_short", "unreadable", "unreadable"], done


@pytest.mark.parametrize("name", ["mp3", "sync words", "chunks", "chunks of audio", "tags", "pages", "text"])
def test_no_file_of_30_mb_takes_long(name):
    """Loops over frames, chunks, tags and pages that go on for as long as the file does."""
    size, mp3 = 30 << 20, files.written("MP3", "MPEG_LAYER_III")
    encoded = {
        "mp3": lambda: mp3 + b"\xff" * size, "sync words": lambda: b"\xff\xfb\x90\x44" * (size // 4),
        "chunks": lambda: files.riff(files.fmt(), b"abcd\0\0\0\0" * (size // 40)),
        "chunks of audio": lambda: files.riff(files.fmt(), b"data\0\0\0\0" * (size // 8)),
        "tags": lambda: b"ID3\3\0\0\0\0\0\0" * (size // 10), "text": lambda: b"a" * size,
        "pages": lambda: files.written("OGG", "VORBIS") + b"OggS" * (size // 4),
    }[name]()  # fmt: skip
    begin = time.process_time()
    with contextlib.suppress(audio_check.BadAudio):
        audio_check.load(encoded)
    assert time.process_time() - begin < 8


def test_an_excerpt_is_there_or_the_reason_is(tmp_path):
    sound = files.pcm16()
    (tmp_path / "a.flac").write_bytes(flac := files.written("FLAC", "PCM_16", sound))
    samples, rate = audio_check.excerpt(tmp_path / "a.flac", 1.0, 1.5)
    assert rate == files.RATE
    np.testing.assert_array_equal(samples[:, 0], sound[16_000:24_000])
    (tmp_path / "damaged.flac").write_bytes(flac[: len(flac) // 3])
    (tmp_path / "text.flac").write_text("404")
    os.mkfifo(tmp_path / "pipe.flac")
    for name, start, stop, reason in (
        ("a.flac", 2.5, 3.5, Reason.TRUNCATED), ("a.flac", 2.0, 1.0, Reason.EMPTY), ("a.flac", -1, 1.0, Reason.EMPTY),
        ("damaged.flac", 2.0, 2.5, Reason.UNREADABLE), ("text.flac", 0, 1, Reason.UNREADABLE),
        ("pipe.flac", 0, 1, Reason.UNREADABLE), ("none.flac", 0, 1, Reason.MISSING), ("", 0, 1, Reason.UNREADABLE),
    ):  # fmt: skip
        with pytest.raises(audio_check.BadAudio) as caught:
            audio_check.excerpt(tmp_path / name, start, stop)
        assert caught.value.reason == reason, name


def test_what_decoders_quote_steers_no_terminal(tmp_path, monkeypatch):
    script = "printf '[error] no \\033[2J\\007 %s\\r\\n[error] second' 0123456789 >&2; exit 1"
    (tmp_path / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(audio_check.BadAudio) as caught:
        audio_check.load(b"\x1a\x45\xdf\xa3" + bytes(99))
    assert caught.value.detail.isprintable() and "0123456789" in caught.value.detail
    assert len(audio_check.BadAudio(Reason.UNREADABLE, "x" * 999).detail) == 300


def test_an_ffmpeg_without_end_is_ended(tmp_path, monkeypatch):
    """One that writes for ever: no more than a recording of so few bytes may be; nothing of it is left running."""
    head = r"printf '.snd\0\0\0\030\377\377\377\377\0\0\0\006\0\0\076\200\0\0\0\001'"
    (tmp_path / "ffmpeg").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{head}\nexec cat /dev/zero\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert refused(b"\x1a\x45\xdf\xa3" + bytes(99)) == Reason.TOO_LONG
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        timer.join(5)
        assert not timer.is_alive()


def test_one_format_under_the_name_of_another(tmp_path):
    for name, kind in (
        ("a.wav", "mp3 mpeg_layer_iii"),
        ("b.mp3", "wav gsm610"),
        ("c.txt", "flac pcm_16"),
        ("d", "ogg opus"),
    ):
        (tmp_path / name).write_bytes(files.written(*files.BY_LIBSNDFILE[kind]))
        waveform, _ = audio_check.load(tmp_path / name)
        assert files.likeness(waveform) > 0.97


def test_names_are_no_options(tmp_path):
    encoded = files.by_ffmpeg_one("opus.mkv", tmp_path)
    for name in ("-i", "-f.webm", "concat:a|b.mkv", "data:,x.mkv", "%d.mkv", "a\n.mkv", "$(x).mkv"):
        (tmp_path / name).write_bytes(encoded)
        assert files.likeness(audio_check.load(tmp_path / name)[0]) > 0.97


def test_without_ffmpeg_a_damaged_file_is_bad_and_a_good_one_asks_for_it(monkeypatch, tmp_path):
    good = files.by_ffmpeg_one("g726.wav", tmp_path)
    audio_check.load(good)

    def none():
        raise ffmpeg.MissingFfmpegError("no ffmpeg")

    monkeypatch.setattr(ffmpeg, "program", none)
    with pytest.raises(ffmpeg.MissingFfmpegError):
        audio_check.load(good)
    assert refused(files.riff(files.fmt(bits=0), files.chunk(b"data", bytes(9_000)))) == Reason.UNREADABLE
    for bits, frame in ((7, 2), (8, 2), (16, 1), (24, 2)):
        header = files.chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, files.RATE, files.RATE * frame, frame, bits))
        assert refused(files.riff(header, files.chunk(b"data", bytes(range(1, 251)) * 40))) == Reason.UNREADABLE
    mp3 = files.written("MP3", "MPEG_LAYER_III")
    np.testing.assert_allclose(audio_check.load(mp3)[1].duration_s, 3, atol=0.15)
