"""Typos get the nearest name, budgets come in any unit, configs survive JSON."""

import json
import re
import subprocess
import sys

import pytest
from ml_collections import ConfigDict
from toy_stage import ToyStage, toy_config

from configs import common
from mser_jax import config as config_lib
from mser_jax import train
from mser_jax.parallel import mesh as mesh_lib

SIZE = config_lib.DataSize(examples=1000, hours=2.0)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("300 steps", 300),
        ("1 step", 1),
        ("1e3 examples", 32),
        ("2 epochs", 63),
        ("4 hours", 63),
        ("0.5 epochs", 16),
        ("", 0),
    ],
)
def test_budgets(budget, expected):
    assert config_lib.steps(budget, 32, SIZE) == expected


@pytest.mark.parametrize(
    "budget", ["300", "300 stepps", "steps", "-3 steps", "nan steps", "1.2.3 steps", "1e999 steps", "inf epochs"]
)
def test_a_text_that_is_no_budget(budget):
    with pytest.raises(config_lib.ConfigError, match=r"is no budget: expected e\.g\. '300 steps'"):
        config_lib.steps(budget, 32, SIZE)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("optim.learning_rat", "optim.learning_rate"),
        ("optm.learning_rate", "optim.learning_rate"),
        ("learning_rate", "optim.learning_rate"),
        ("seed.deep", "seed"),
    ],
)
def test_unknown_keys_name_the_nearest(key, near):
    with pytest.raises(config_lib.ConfigError, match=rf"Did you mean --config\.{near}\?"):
        config_lib.check_key(common.base(), key)


def test_known_keys_pass():
    for key, _ in config_lib.leaves(common.base()):
        config_lib.check_key(common.base(), key)


def test_json_round_trip_and_hash():
    config = common.base()
    again = config_lib.from_dict(json.loads(config_lib.to_json(config)))
    assert again.to_dict() == config.to_dict()
    assert again.optim.groups == ((".*", 1.0),)
    assert config_lib.config_hash(again) == config_lib.config_hash(config)
    again.optim.learning_rate *= 2
    assert config_lib.config_hash(again) != config_lib.config_hash(config)


def test_changes_between_a_checkpoint_and_a_command_line():
    config = common.base()
    again = config_lib.from_dict(json.loads(config_lib.to_json(config)))
    assert config_lib.changes(again, config) == []
    again.optim.learning_rate, again.optim.groups = 1.0, ()
    del again.seed
    assert config_lib.changes(again, config) == [
        "optim.groups: () → (('.*', 1.0),)",
        "optim.learning_rate: 1.0 → 0.001",
        "seed: None → 0",
    ]


def test_choice():
    config = ConfigDict({"mesh": {"mode": "explicitt"}})
    with pytest.raises(config_lib.ConfigError, match="Did you mean 'explicit'"):
        config_lib.choice(config, "mesh.mode", ["explicit", "auto"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/stage1.py", "--config.optim.learning_rat=1"], "Did you mean --config.optim.learning_rate?"),
        (["--config=configs/stage1.py", "--config.seed=x"], "--config.seed=x: expected a whole number, such as 0"),
        (
            ["--config=configs/stage1.py", "--config.optim.learning_rate=fast"],
            "=fast: expected a number, such as 0.001",
        ),
        (["--config=configs/stag1.py"], "Did you mean configs/stage1.py?"),
        (["--config=configs/stage1.py:size=huge"], "'huge'"),
        (["--config=configs/stage1.py:sise=mini"], "unknown key 'sise'"),
        (["--config=configs/stage1.py", "--workdirr=x"], "workdirr"),
        (["--config=configs/m5ser.py:six"], "is run by `python -m mser_jax.m5ser`"),
        ([], "--config=FILE is missing"),
    ],
)
def test_the_command_line_refuses_in_one_line(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "mser_jax.main", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [ValueError("width 48 is no multiple of 7"), re.error("missing )")])
def test_a_model_that_cannot_be_built_is_a_mistake_in_the_config(error):
    class Impossible(ToyStage):
        def build(self, rngs):
            raise error

    with pytest.raises(config_lib.ConfigError, match=rf"^--config\.\{{.*model\}}: {re.escape(str(error))}"):
        train.build(toy_config(), mesh_lib.make_mesh(-1, 1, 1), Impossible())


def test_a_placeholder_takes_a_value_of_its_type():
    config = config_lib.load("configs/evaluate.py")
    for key, text, value in (
        ("evaluate.bootstrap_samples", "9", 9), ("evaluate.closed_set", "True", True),
        ("evaluate.adapt", "none", "none"), ("evaluate.closed_set", False, False),
    ):  # fmt: skip
        config_lib.set_value(config, key, text)
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == value and type(node) is type(value)
    for key, text in (("evaluate.bootstrap_samples", "nine"), ("evaluate.closed_set", "2"), ("evaluate.adapt", True)):
        with pytest.raises(config_lib.ConfigError, match=key):
            config_lib.set_value(config, key, text)
