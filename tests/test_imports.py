"""Every module imports, every config builds, every script parses: entry points of others' repositories rotted here."""

import importlib
import pathlib
import pkgutil
import py_compile
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


@pytest.mark.parametrize("path", sorted(ROOT.glob("tools/*.py")), ids=lambda p: p.name)
def test_tool_says_what_it_takes(path):
    py_compile.compile(str(path), doraise=True)
    done = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, check=False)
    assert "usage" in (done.stdout + done.stderr).lower(), done.stderr


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
