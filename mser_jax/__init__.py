"""mser_jax: zero-shot speech emotion recognition across languages, in JAX."""

import os
import pathlib

__version__ = "0.1.0"


def has_tpu_chips() -> bool:
    """Look for TPU chips among the devices of this host."""
    return any(any(pathlib.Path("/dev").glob(name)) for name in ("accel[0-9]*", "vfio/[0-9]*"))


if not has_tpu_chips():
    # Where libtpu is installed (to compile ahead of time) jax asks it for a TPU first; told what it would look for, it
    # finds none without a word.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
