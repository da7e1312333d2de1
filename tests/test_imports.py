"""Every module imports, every config builds, every script parses: entry points of others' repositories rotted here."""

import importlib
import importlib.util
import os
import pathlib
import pkgutil
import py_compile
import shutil
import subprocess
import sys

import pytest

import mser_jax
from configs import pretrained
from mser_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages(mser_jax.__path__, "mser_jax."))


@pytest.mark.parametrize("name", MODULES)
def test_module_imports(name):
    importlib.import_module(name)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.py")), ids=lambda p: p.name)
def test_config_builds(path):
    if path.name not in ("common.py", "pretrained.py"):
        config = config_lib.load(str(path))
        assert config.task in ("train", "evaluate", "generate")
        assert config_lib.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("variant", ["size=mini", "size=small", "real", "lolo=de", "real,size=small,lolo=zh"])
def test_stage1_variants_build(variant):
    config = config_lib.load(f"configs/stage1.py:{variant}")
    if "lolo" in variant:
        assert config.data.exclude_languages == config.evaluate.include_languages == variant[-2:]


@pytest.mark.parametrize("variant", ["real,size=small,lolo=zh", *(f"{name},cache=auto" for name in pretrained.STAGE2)])
def test_stage2_variants_build(variant):
    config = config_lib.load(f"configs/stage2.py:{variant}")
    assert config.stage == "finetuning" and "text_encoder" not in config and not config.init_from


TOOLS = sorted(ROOT.glob("tools/*.py"))
# Every tool is a process of its own, as at a shell; what takes seconds to import they share.
ASK = """
import os, runpy, sys, traceback
import jax, peft, transformers
import mser_jax.evaluate
for tool in sys.argv[2:]:
    if not (pid := os.fork()):
        out = os.open(f"{sys.argv[1]}/{os.path.basename(tool)}", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.argv = [tool, "--help"]
        sys.path[0] = os.path.dirname(tool)
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder with what every tool says to --help."""
    folder = tmp_path_factory.mktemp("told")
    subprocess.run([sys.executable, "-c", ASK, str(folder), *map(str, TOOLS)], check=True)
    return folder


@pytest.mark.parametrize("path", TOOLS, ids=lambda p: p.name)
def test_tool_says_what_it_takes(path, told):
    py_compile.compile(str(path), doraise=True)
    said = (told / path.name).read_text()
    assert "usage" in said.lower() and "Traceback" not in said, said


SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("tools/*.sh"), ROOT / "launch/slurm.sbatch"])


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_script_says_what_it_takes_and_does_nothing(path, option, tmp_path):
    """Nothing: there is nothing on its PATH that could."""
    for name in ("sed", "dirname", "realpath", "bash"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run([shutil.which("bash"), path, option], env={"PATH": str(tmp_path)}, cwd=tmp_path, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: " in done.stdout and "set -" not in done.stdout


PROGRAMS = ["main", "predict", "aot", "corpora", "m5ser", "m5ser.card"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_says_what_it_takes(name, tmp_path):
    line = [sys.executable, "-m", f"mser_jax.{name}", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("tools/*.sh"), ROOT / ".ci/run"]))
def test_shell_script_parses(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_imports_run_one_way():
    """What stands lower never imports what stands higher."""
    order = [
        "parallel",
        "telemetry",
        "corpora",
        "m5ser",
        "losses",
        "models",
        "pretrained",
        "evaluation",
        "data",
        "stages",
    ]
    allowed = {
        "parallel": set(),
        "telemetry": {"parallel"},
        "corpora": set(),
        "m5ser": {"corpora", "evaluation"},
        "losses": {"parallel"},
        "models": {"parallel"},
        "pretrained": {"models", "parallel"},
        "evaluation": {"corpora"},
        "data": {"corpora", "parallel"},
        "stages": set(order) - {"m5ser"},
    }
    for package, may in allowed.items():
        for path in (ROOT / "mser_jax" / package).rglob("*.py"):
            text = path.read_text()
            for other in order:
                if other != package and other not in may:
                    imported = f"from mser_jax.{other}" in text or f"from mser_jax import {other}" in text
                    assert not imported, f"{path} imports mser_jax.{other}"
            assert "mser_jax.main" not in text.replace("python -m mser_jax.main", "") and "import configs" not in text


def test_where_there_is_no_tpu_its_library_says_nothing():
    """libtpu comes with the extra `aot`, and jax tries it wherever nothing forbids it."""
    if importlib.util.find_spec("libtpu") is None or mser_jax.has_tpu_chips():
        pytest.skip("libtpu is not installed, or there is a TPU")
    environ = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS" and "TPU" not in key}
    command = [sys.executable, "-c", "import mser_jax, jax; print(jax.devices()[0].platform)"]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("cpu\n", "")
