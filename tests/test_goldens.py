"""The whole text of every config: what a change of a shared default does to each of them is seen in its diff."""

import pathlib

import pytest

from configs import pretrained
from mser_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
GOLDENS = ROOT / "tests" / "goldens" / "configs"
_BOTH = ("", "size=small", "real", "cache=auto", "lolo=de")
VARIANTS = {
    "stage1": (*_BOTH, *pretrained.PRESETS, "whisper_base_e5,cache=auto,lolo=de"),
    "stage2": (*_BOTH, *pretrained.STAGE2, "whisper_base_gemma,cache=auto,lolo=de"),
    "evaluate": ("",),
    "m5ser": ("", "six"),
}
CONFIGS = {
    f"{file}{variant and '.'}{variant}.txt": f"configs/{file}.py{variant and ':'}{variant}"
    for file, variants in VARIANTS.items()
    for variant in variants
}


def text_of(spec):
    """One 'section.key = value' a line, sorted, below the spec itself."""
    lines = (f"{key} = {value!r}" for key, value in config_lib.leaves(config_lib.load(str(ROOT / spec))))
    return "\n".join([f"--config={spec}", *lines, ""])


@pytest.mark.parametrize("name", CONFIGS)
def test_config(golden, name, monkeypatch):
    monkeypatch.delenv("MSER_WEIGHTS", raising=False)  # presets name hub ids, not this machine's folders
    golden(f"configs/{name}", text_of(CONFIGS[name]))


def test_every_config_has_its_goldens(request):
    sources = {path.stem for path in ROOT.glob("configs/*.py") if "def get_config" in path.read_text()}
    assert sources == set(VARIANTS), "name its variants here"
    stale = [path for path in GOLDENS.iterdir() if path.name not in CONFIGS]
    if request.config.getoption("--update"):
        for path in stale:
            path.unlink()
    else:
        assert not stale, "texts of no config; --update removes them"
