"""What names a run, and paths in a config: the same from anywhere, however they are written."""

import pathlib

import pytest
from etils import epath

from mser_jax import config as config_lib
from mser_jax.run import check_places, locate


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A home with runs/one, which has checkpoints of steps 7 and 350; the working directory is beside it."""
    for step in (7, 350):
        (tmp_path / "home" / "runs" / "one" / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "home" / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")
    return tmp_path / "home" / "runs"


@pytest.mark.parametrize("written", ["{}", "../runs", "~/runs", "~/work/../runs", "./../runs/."])
@pytest.mark.parametrize(
    ("named", "asked", "step"),
    [
        *(("one", None, None), ("one/", -1, None), ("one", 7, 7), ("one/checkpoints", None, None)),
        *(("one/checkpoints/", 350, 350), ("one/checkpoints/350", None, 350), ("one/checkpoints/7/", -1, 7)),
        ("one/checkpoints/7", 7, 7),
    ],
)
def test_a_checkpoint_has_three_names(runs, written, named, asked, step):
    found = locate(f"{written.format(runs)}/{named}", asked)
    assert (found.run, found.step) == (runs / "one", step)
    assert found.checkpoints == runs / "one" / "checkpoints"


def test_from_within(runs, monkeypatch):
    for folder, name, step in (("one", ".", None), ("one/checkpoints", ".", None), ("one/checkpoints", "350", 350)):
        monkeypatch.chdir(runs / folder)
        assert (locate(name).run, locate(name).step) == (runs / "one", step)


def test_a_run_that_is_called_as_its_checkpoints_are(runs):
    for name in ("checkpoints", "12"):
        (runs / name / "checkpoints").mkdir(parents=True)
        assert locate(f"../runs/{name}").run == runs / name


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("one/checkpoints/350", 7, r"x=.*is the checkpoint of step 350, but step 7 is asked for"),
        ("ona", None, r"x=\.\./runs/ona: no checkpoint below .*/ona/checkpoints\. .*Did you mean .*/runs/one\?"),
        ("nowhere/run", None, "no checkpoint below .* Expected the workdir of a training run"),
        ("two/checkpoints/3", None, "no checkpoint below"),
    ],
)
def test_what_names_none_is_one_line(runs, name, step, message):
    with pytest.raises(config_lib.ConfigError, match=message) as error:
        locate(f"../runs/{name}", step, what="x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("inside", ["evaluations", "config.json", "checkpoints/350/params", "checkpoints/350/x/y"])
def test_what_lies_in_a_run_names_the_run(runs, inside):
    (runs / "one" / "config.json").touch()
    with pytest.raises(config_lib.ConfigError, match=rf"no checkpoint below .*Did you mean {runs / 'one'}\?$"):
        locate(f"../runs/one/{inside}")


@pytest.mark.parametrize("name", ["checkpoints", "evaluations", "lease", "tensorboard"])
def test_what_is_in_a_runs_way_is_told(runs, name):
    check_places(epath.Path(runs / "one"))
    check_places(epath.Path(runs / "none"))
    (runs / "two").mkdir()
    (runs / "two" / name).write_text("a file")
    with pytest.raises(config_lib.ConfigError, match=f"two/{name} is a file, expected a folder or nothing"):
        check_places(epath.Path(runs / "two"))


@pytest.mark.parametrize("name", ["config.json", "finished.json", "metrics.jsonl"])
def test_folders_in_the_way_of_a_runs_files_are_told(runs, name):
    (runs / "two" / name).mkdir(parents=True)
    with pytest.raises(config_lib.ConfigError, match=f"two/{name} is a folder, expected a file or nothing"):
        check_places(epath.Path(runs / "two"))


def test_an_empty_name():
    with pytest.raises(config_lib.ConfigError, match="checkpoint=: an empty path"):
        locate("")


def written(corpora="speech_folder:../speech@2,m5ser_mini", **changes):
    config = config_lib.load(str(pathlib.Path(__file__).parents[1] / "configs" / "stage2.py"))
    for key, value in {"data.corpora": corpora, **changes}.items():
        config_lib.set_value(config, key, value)
    return config


def test_a_path_means_the_same_from_anywhere_and_hashes_alike(runs, monkeypatch):
    given = {"init_from": "~/runs/one", "data.data_dir": "../data", "data.feature_cache": "auto"}
    given["data.labels"] = "../own/labels.toml"
    given |= {"speech_encoder.init": "openai/whisper-base", "llm.init": "./gemma", "llm.tokenizer": "byt5"}
    config = written("speech_folder:../sp@ech@2 , m5ser_mini,m5ser:~/made,speech_folder:gs://b/x@.5", **given)
    made = config_lib.with_absolute_paths(config)
    home = runs.parent
    assert made.init_from == str(runs / "one") and made.data.data_dir == str(home / "data")
    assert made.data.labels == str(home / "own" / "labels.toml")
    assert made.data.feature_cache == "auto" and made.llm.tokenizer == "byt5"
    assert made.speech_encoder.init == "openai/whisper-base" and made.llm.init == str(home / "work" / "gemma")
    assert made.data.corpora == (
        f"speech_folder:{home}/sp@ech@2 , m5ser_mini,m5ser:{home}/made,speech_folder:gs://b/x@.5"
    )
    assert config.init_from == "~/runs/one", "a copy"
    assert config_lib.config_hash(config) == config_lib.config_hash(made)
    monkeypatch.chdir(home)
    assert config_lib.with_absolute_paths(made).to_dict() == made.to_dict()
    assert config_lib.config_hash(config) != config_lib.config_hash(made), "../data is another folder from here"


def test_configs_as_they_are_keep_their_hash():
    config = config_lib.load("configs/stage1.py")
    assert config_lib.with_absolute_paths(config).to_dict() == config.to_dict()
