"""Containers that libsndfile does not read (mp4, m4a, avi, webm, …), decoded by the program ffmpeg.

The program is the one on PATH, else the one that the PyPI package imageio-ffmpeg brings.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile

TIMEOUT_SECONDS = 120  # for one file; ten minutes of video take about two

# First bytes -> container. An AVI is a RIFF file, as WAV is; an MPEG-4 or QuickTime file starts with a box of any size.
_CONTAINERS = re.compile(
    rb"RIFF....AVI |....(?:ftyp|moov|mdat|wide|free)|\x1a\x45\xdf\xa3|\x30\x26\xb2\x75|FLV|#!AMR|\x00\x00\x01\xba"
    rb"|\xff[\xf1\xf9]",
    re.DOTALL,
)
# AVIs from recorders that could not go back to fill in the length.
_STREAMED_SIZE = 0x7FFF_0000
_NO_AUDIO = re.compile(r"matches no streams|does not contain any stream")
_CUT_OFF = re.compile(r"partial file|ended prematurely|moov atom not found")


class MissingFfmpegError(RuntimeError):
    """There is no ffmpeg on this machine. Nobody's recording is at fault, so nothing may be skipped for it."""


class NoAudioError(ValueError):
    """The file has no audio track."""


class CutOffError(ValueError):
    """The end of the file is missing."""


class DecodingError(ValueError):
    """ffmpeg makes nothing of the file; the message says what it says."""


def is_container(encoded: bytes) -> bool:
    """Whether what starts so is for ffmpeg (MPEG-4, QuickTime, AVI, Matroska, ASF, FLV, AMR, MPEG, AAC)."""
    return bool(_CONTAINERS.match(encoded))


def to_wav(encoded: bytes) -> bytes:
    """The first audio track of a file, as a WAV file (float32) at its own rate and with its own channels.

    Args:
      encoded: the whole file.

    Raises:
      MissingFfmpegError: no ffmpeg here; says how to get it.
      NoAudioError, CutOffError, DecodingError: as they say, the last one also where ffmpeg takes longer than
        TIMEOUT_SECONDS (it is killed).
    """
    announced = int.from_bytes(encoded[4:8], "little") if encoded[:4] == b"RIFF" else 0
    if len(encoded) < 0.99 * announced < _STREAMED_SIZE:  # else ffmpeg gives what is there without a word
        raise CutOffError(f"{len(encoded)} of the announced {announced} bytes are there")
    with tempfile.NamedTemporaryFile(
        prefix="ffmpeg."
    ) as file:  # MPEG-4 is not to be read from a pipe: no seeking there
        file.write(encoded)
        file.flush()
        command = [
            *(program(), "-nostdin", "-hide_banner", "-loglevel", "error", "-threads", "1", "-i", file.name),
            *("-map", "0:a:0", "-bitexact", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise DecodingError(f"ffmpeg was killed after {TIMEOUT_SECONDS} s") from error
    said = done.stderr.decode(errors="replace")
    if _NO_AUDIO.search(said):
        raise NoAudioError("no audio track in it")
    if cut := _CUT_OFF.search(said):
        raise CutOffError(f"ffmpeg: {cut[0]}")
    if done.returncode:
        raise DecodingError(
            f"ffmpeg: {(said.strip().splitlines() or ['no message'])[0].replace(file.name, 'the file')}"
        )
    return done.stdout


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
