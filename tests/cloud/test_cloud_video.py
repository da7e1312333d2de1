"""Video on gs://, which ffmpeg itself cannot read: through a copy."""

import subprocess

import numpy as np
import pytest

from mser_jax.corpora import audio_check, ffmpeg


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_a_video_on_gs_is_heard_as_the_local_one(gcs, bucket, tmp_path, name):
    source = ("-f", "lavfi", "-i", "sine=300:duration=0.5:sample_rate=48000")
    subprocess.run([ffmpeg.program(), "-v", "error", *source, str(tmp_path / name)], check=True, timeout=60)
    (bucket / name).write_bytes((tmp_path / name).read_bytes())
    local, info = audio_check.load(tmp_path / name)
    remote, remote_info = audio_check.load(bucket / name)
    np.testing.assert_array_equal(remote, local)
    assert remote_info == info and info.sampling_rate == 48_000
    (bucket / name).write_bytes((tmp_path / name).read_bytes()[:400])
    with pytest.raises(audio_check.BadAudio):
        audio_check.load(bucket / name)
