"""What libsndfile does not read (mp4, m4a, avi, webm, …), decoded by the program ffmpeg.

The program is the one on PATH, else the one that the PyPI package imageio-ffmpeg brings. Recordings come from anywhere:
ffmpeg is told the format, as some that it guesses open other files and hosts, and may open nothing else.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

import numpy as np

TIMEOUT_SECONDS = 120  # for one file, and a second for each MiB of it; ten minutes of video take about two
MAX_MEMORY = 4 << 30  # bytes of address space
MAX_BLOCK = 256 << 20  # bytes that a header may make it allocate at once
MAX_ERRORS = 0.02  # share of packets that may not decode: the first of a piece that was cut out of a broadcast
CUT_PACKETS = 2  # that may not decode, whatever their share: the first and the last of what was recorded from a stream
_TOLERANCE = 0.01  # share of the announced length that may be missing

_BLOCK = 1 << 16  # samples of all channels together that are read at once
# AVIs from recorders that could not go back to fill in the length.
_STREAMED_SIZE = 0x7FFF_0000
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_NO_AUDIO = re.compile(r"matches no streams|does not contain any stream")
_CUT_OFF = re.compile(r"partial file|ended prematurely|moov atom not found|Error during demuxing")
_FAILED_PACKET = re.compile(r"Error submitting packet to decoder|\] Decoding error")
_STREAM = re.compile(r"Stream #0:\d+\S*: \w")  # of the input and of the output
_DURATION = re.compile(r"Duration: (\d+):(\d\d):(\d\d\.\d+)")


class MissingFfmpegError(RuntimeError):
    """There is no ffmpeg on this machine. Nobody's recording is at fault, so nothing may be skipped for it."""


class NoAudioError(ValueError):
    """The file has no audio track."""


class CutOffError(ValueError):
    """The end of the file is missing."""


class DecodingError(ValueError):
    """ffmpeg makes nothing of the file; the message says what it says."""


@contextlib.contextmanager
def decoded(encoded: bytes, demuxer: str) -> Iterator[tuple[int, int, Iterator[np.ndarray]]]:
    """Decode the first audio track of a file at its own rate and with its own channels.

    Args:
        encoded: the whole file.
        demuxer: ffmpeg's name of its format.

    Yields:
        (rate in Hz, channels, blocks float32 [time, channels]). ffmpeg is ended when the context is left.

    Raises:
        MissingFfmpegError: no ffmpeg here; says how to get it.
        NoAudioError, CutOffError, DecodingError: as they say, also while the blocks are read; the last one also where
            ffmpeg takes too long (it is killed).
        OSError: no room for a temporary copy.
    """
    announced = _announced_bytes(encoded)
    if len(encoded) < (1 - _TOLERANCE) * announced:  # else ffmpeg gives what is there without a word
        raise CutOffError(f"{len(encoded)} of the announced {announced} bytes are there")
    # MPEG-4 is not to be read from a pipe: no seeking there.
    with tempfile.NamedTemporaryFile(prefix="ffmpeg.") as file, tempfile.TemporaryFile() as said:
        file.write(encoded)
        file.flush()
        limit = TIMEOUT_SECONDS + len(encoded) / 2**20
        process = subprocess.Popen(
            _command(file.name, demuxer), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        )
        late = threading.Event()
        killer = threading.Timer(limit, lambda: (late.set(), process.kill()))
        try:
            _limit_memory(process.pid)
            killer.start()
            head = process.stdout.read(24)
            if len(head) < 24:
                _check(process, said, late, None, file.name)
                raise DecodingError("ffmpeg gives no audio")
            offset, _, _, rate, channels = struct.unpack(">5I", head[4:])
            process.stdout.read(offset - 24)

            def blocks() -> Iterator[np.ndarray]:
                frame, count = 4 * channels, 0
                while data := process.stdout.read(frame * max(1, _BLOCK // channels)):
                    block = np.frombuffer(data[: len(data) // frame * frame], ">f4").astype(np.float32)
                    count += len(block) // channels
                    yield block.reshape(-1, channels)
                _check(process, said, late, count / rate, file.name)

            yield rate, channels, blocks()
        finally:
            killer.cancel()
            process.kill()
            process.stdout.close()
            process.wait()


def _announced_bytes(encoded: bytes) -> int:
    """How long an AVI, ASF, SoX or VOC file says that it is; 0 where it, or another, does not."""
    if encoded[:4] == b"RIFF":
        announced = int.from_bytes(encoded[4:8], "little")
        return announced if announced < _STREAMED_SIZE else 0
    if encoded[:4] in (b".SoX", b"XoS."):
        order = "little" if encoded[:1] == b"." else "big"
        return int.from_bytes(encoded[4:8], order) + 4 * int.from_bytes(encoded[8:16], order)
    if encoded.startswith(b"Creative Voice File"):
        end = int.from_bytes(encoded[20:22], "little")
        while end + 4 <= len(encoded) and encoded[end]:
            end += 4 + int.from_bytes(encoded[end + 1 : end + 4], "little")
        return end
    found = encoded.find(_ASF_PROPERTIES, 0, 1 << 16)
    is_broadcast = int.from_bytes(encoded[found + 88 : found + 92], "little") & 1
    return 0 if found < 0 or is_broadcast else int.from_bytes(encoded[found + 40 : found + 48], "little")


def _command(path: str, demuxer: str) -> list[str]:
    return [
        *(program(), "-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info", "-max_alloc", str(MAX_BLOCK)),
        *("-max_error_rate", str(MAX_ERRORS), "-protocol_whitelist", "file,pipe", "-format_whitelist", demuxer),
        *("-f", demuxer, "-threads", "1", "-i", f"file:{path}", "-map", "0:a:0", "-vn", "-sn", "-dn"),
        *("-bitexact", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"),
    ]


def _limit_memory(pid: int) -> None:
    if sys.platform == "linux":
        import resource

        with contextlib.suppress(OSError):  # it may have ended already
            resource.prlimit(pid, resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def _check(
    process: subprocess.Popen[bytes], said: IO[bytes], late: threading.Event, seconds: float | None, path: str
) -> None:
    """Wait for the end of ffmpeg and raise what it says. seconds: of audio that it gave, None = nothing at all."""
    code = process.wait()
    said.seek(0)
    words = said.read(1 << 20).decode(errors="replace").replace(path, "the file").replace("file:the", "the")
    if late.is_set():
        raise DecodingError(f"ffmpeg was killed after more than {TIMEOUT_SECONDS} s")
    errors = [line for line in words.splitlines() if re.search(r"\[(?:error|fatal|panic)\]", line)]
    if _NO_AUDIO.search(words):
        raise NoAudioError("no audio track in it")
    if cut := _CUT_OFF.search("\n".join(errors)):
        raise CutOffError(f"ffmpeg: {cut[0]}")
    is_rate = any("exceeds maximum" in line for line in errors)
    if code and not (is_rate and len(_FAILED_PACKET.findall(words)) <= CUT_PACKETS):
        message = re.sub(r"\[[^]]*\] ?", "", errors[0]).strip() if errors else f"ended with code {code}"
        raise DecodingError(f"ffmpeg: {message}")
    length = _DURATION.search(words)
    # Beside a picture or another track the longest one is what is announced.
    if seconds is not None and length and len(_STREAM.findall(words)) == 2 and "Estimating duration" not in words:
        whole = int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3])
        if seconds < (1 - _TOLERANCE) * whole - 0.1:
            raise CutOffError(f"{seconds:.2f} of the announced {whole:.2f} s are there")


def program() -> str:
    """The path of ffmpeg.

    Raises:
      MissingFfmpegError: there is none.
    """
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise MissingFfmpegError(
            "this file is a container that libsndfile does not read (mp4, m4a, avi, webm, …) but ffmpeg does, and there"
            " is no ffmpeg on PATH. Get it: pip install imageio-ffmpeg, or apt-get install ffmpeg"
        ) from error
