"""Every number of every config has a range; what is outside is told in one line, before anything is compiled."""

import random

import pytest
from absl import flags

from configs import common, pretrained
from mser_jax import config as config_lib
from mser_jax import ranges

SPECS = (
    *("configs/stage1.py", "configs/stage1.py:real", "configs/stage1.py:size=small,lolo=de", "configs/stage2.py"),
    *("configs/evaluate.py", "configs/m5ser.py", "configs/m5ser.py:six"),
    *(f"configs/stage1.py:{name}" for name in pretrained.PRESETS),
    *(f"configs/stage2.py:{name}" for name in pretrained.STAGE2),
)


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers_of(value):
    return [n for item in value for n in numbers_of(item)] if isinstance(value, tuple) else [value] * is_number(value)


@pytest.mark.parametrize("spec", SPECS)
def test_every_number_of_every_config_has_a_range_and_lies_in_it(spec):
    config = config_lib.load(spec)
    lacking = [
        key
        for key, value in config_lib.leaves(config)
        if (is_number(value) or isinstance(value, tuple)) and ranges.range_of(key) is None
    ]
    lacking = [
        key for key in lacking if not all(isinstance(item, bool) for item in dict(config_lib.leaves(config))[key])
    ]
    assert not lacking, "a number needs a line in mser_jax/ranges.py"
    config_lib.check(config)


def test_every_line_of_the_table_is_of_some_key():
    keys = {key for spec in SPECS for key, _ in config_lib.leaves(config_lib.load(spec))}
    used = {ranges.range_of(key) and next(p for p, _ in ranges.RANGES if ranges.re.fullmatch(p, key)) for key in keys}
    assert [pattern for pattern, _ in ranges.RANGES if pattern not in used] == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), -1e30, 1e30])
@pytest.mark.parametrize("spec", ["configs/stage1.py", "configs/stage2.py:whisper_base_gemma", "configs/m5ser.py"])
def test_no_number_may_be_anything(spec, wrong):
    """Each number alone, out of all bounds: refused by its own name."""
    flat = dict(config_lib.leaves(config_lib.load(spec)))
    for key, value in flat.items():
        if numbers_of(value):
            changed = (wrong,) * len(value) if isinstance(value, tuple) else wrong
            found = ranges.problems({key: changed})
            if key == "data.temperature" and wrong >= 1e30:
                assert not found, "all languages alike"
            elif not (isinstance(value, tuple) and isinstance(value[0], bool)):
                assert len(found) == 1 and f"--config.{key}=" in found[0] and "expected" in found[0], key


def parsed(*arguments, spec="configs/stage1.py", program="mser_jax.main"):
    """The config that a command line makes."""
    flags.FLAGS.remove_flag_values([name for name in ("config",) if name in flags.FLAGS])
    config_lib.define_flag()
    config_lib.parse_flags(["program", f"--config={spec}", *arguments], program)
    return flags.FLAGS.config


WRONG = {
    "optim.learning_rate=nan": "nan: expected a number > 0 and ≤ 100",
    "optim.learning_rate=inf": "inf: expected",
    "optim.learning_rate=-1e-3": "-0.001: expected",
    "optim.learning_rate=": "=: expected a number, such as 0.001",
    "optim.b2=1": "b2=1.0: expected a number ≥ 0 and < 1",
    "optim.eps=0": "eps=0.0: expected",
    "optim.clip_norm=-1": "expected a number ≥ 0",
    "optim.warmup=-3 steps": "optim.warmup: '-3 steps' is no budget",
    "train.budget=nan steps": "train.budget: 'nan steps' is no budget",
    "checkpointing.keep_every=1.5.2 epochs": "checkpointing.keep_every: ",
    "checkpointing.keep_latest=0": "keep_latest=0: expected a number ≥ 1",
    "telemetry.log_every=0": "log_every=0: expected a number ≥ 1",
    "telemetry.stall_seconds=nan": "stall_seconds=nan: expected a number ≥ 0",
    "train.batch_size=0": "batch_size=0: expected a number ≥ 1",
    "train.batch_size=16.0": "16.0: expected a whole number, such as 48",
    "speech_encoder.dropout=1.5": "dropout=1.5: expected a number ≥ 0 and < 1",
    "data.temperature=0": "temperature=0.0: expected a number > 0",
    "data.num_threads=-1": "num_threads=-1: expected a number ≥ 0",
    "data.length_classes=()": "expected at least one number of seconds, increasing",
    "data.length_classes=(-1.0, 2.0)": "increasing",
    "data.length_classes=(3.0, 2.0)": "increasing",
    "data.length_classes=('a',)": "increasing",
    "data.length_classes=(1.0": "expected a tuple, such as (3.0,)",
    "data.augment.noise_snr_db=(30.0, 10.0)": "(low, high)",
    "data.balance_emotions=maybe": "expected True or False",
    "optim.groups=(('(', 1.0),)": "'(' is not a regular expression",
    "optim.groups=(('.*', -1.0),)": "expected (path regex, number",
    "optim.groups=('.*',)": "expected (path regex, number",
    "evaluate.bootstrap_samples=0": "bootstrap_samples=0: expected a number ≥ 1",
    "mesh.fsdp=0": "expected a number ≥ 1 and ≤ 2147483647, or -1",
    "model.logit_scale_max=2": "expected at most model.logit_scale_max, which is 2.0",
    "seed=-1": "seed=-1: expected",
    "optim=3": "a section; expected one of its keys: b1, b2",
    "optm.eps=3": "Did you mean --config.optim.eps?",
    "=3": "the config has no '' there",
}


@pytest.mark.parametrize(("argument", "message"), WRONG.items())
def test_a_wrong_value_is_one_line_with_key_value_and_range(argument, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(f"--config.{argument}")
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("error: --config.") and message in line, line


@pytest.mark.parametrize("limit", ["nan hours", "0 hours", "1.2.3 hours", "1e999 utterances", "600", "-1 hours", ""])
def test_a_limit_that_is_none(limit, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(f"--config.limit={limit}", spec="configs/m5ser.py", program="mser_jax.m5ser")
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line == f"error: --config.limit={limit!r}: expected e.g. '600 utterances' or '20 hours'"


def test_each_wrong_value_has_its_line(capsys):
    with pytest.raises(SystemExit):
        parsed("--config.train.batch_size=0", "--config.seed=-1", "--config.evaluate.every=never")
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.seed"], "a value is missing; expected --config.seed=VALUE"),
        (["--config.seed", "--config.data.balance_emotions"], "a value is missing"),
        (["--noconfig.seed"], "a value is missing"),
        (["--config"], "expected --config=FILE"),
        (["--config=configs"], "no file configs.py"),
    ],
)
def test_a_value_that_is_missing(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(*arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and message in line


def test_the_last_value_of_a_key_counts_whatever_its_type_and_place():
    config = parsed(
        *("--config.seed=1", "--config.data.length_classes=(1.0,)", "--config.seed", "2"),
        *("--config.data.length_classes=[2.0, 3]", "--config=configs/stage1.py:size=small"),
        *("--noconfig.data.pair_languages", "--config.evaluate.probes", "-config.data.augment.random_crop=False"),
        *("--config.optim.groups=(('^a', 0), ('.*', 1.0))", "--config.optim.groups=(('.*', 2.0),)"),
        *("--config.mesh.data", "-1", "--config.data.corpora=speech_folder:a=b,c"),
    )
    assert (config.seed, config.data.length_classes, config.optim.groups) == (2, (2.0, 3), ((".*", 2.0),))
    assert config.speech_encoder.sizes.width == 256, "the last --config"
    assert not config.data.pair_languages and config.evaluate.probes and not config.data.augment.random_crop
    assert config.mesh.data == -1 and config.data.corpora == "speech_folder:a=b,c"
    assert config.is_locked


def test_a_config_file_with_a_mistake_in_it(tmp_path, capsys):
    path = tmp_path / "own.py"
    for text in ("def get_config(arg):\n    return foo\n", "def get_config(arg:\n", "x = 1\n", "import nowhere\n"):
        path.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            parsed(spec=str(path))
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and str(path) in line


KINDS = ("typo", "type", "number", "unicode", "brackets", "repeated", "empty", "tuple")
PIECES = (
    *("nan", "inf", "-inf", "1e400", "-1", "0", "1e9", "9" * 5000, "٣", "½", "", " ", "\0", "\n", "(", ")", "[[", "{}"),
    *("(1.0", "1.0,)", "((((", "'", '"a', "\\", "True", "None", "1_0", "0x10", "a=b", "../..", "((('x', 1),),)"),
    *("(" * 3000, "1" + ",1" * 3000, "__import__('os')", "(1, (2, (3,)))", "('.*',)", "(('[', 1.0),)", "1 step"),
)


def mutated(rng, config):
    """One override that is probably wrong."""
    key, value = rng.choice(list(config_lib.leaves(config)))
    kind, text = rng.choice(KINDS), str(value)
    if kind == "typo":
        place = rng.randrange(len(key))
        key = key[:place] + rng.choice(["", ".", "..", "x", "ß", "[0]", "-"]) + key[place + rng.randrange(2) :]
    elif kind == "type":
        text = rng.choice(["True", "1", "1.5", "'a'", "(1,)", "text", "None", "[]"])
    elif kind == "number":
        text = rng.choice(["nan", "inf", "-inf", "-1", "0", "1e300", "-1e-300", str(2**70), "1e-320"])
    elif kind == "unicode":
        text = "".join(chr(rng.choice([0, 10, 0xDC80, 0x202E, 0x1F600, rng.randrange(0x3000)])) for _ in range(5))
    elif kind == "brackets":
        text = rng.choice("([{") * rng.randrange(5) + text + rng.choice(")]}") * rng.randrange(5)
    elif kind == "empty":
        return rng.choice([f"--config.{key}=", f"--config.{key}", f"--noconfig.{key}", "--config.", "--config.=", "--"])
    elif kind == "tuple":
        text = rng.choice(PIECES)
    return f"--config.{key}={text}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_no_override_ends_in_a_traceback(seed, capsys):
    """Typos, wrong types, numbers of all kinds, unicode, brackets, repetitions, nothing: a config or a clear line."""
    print("seed", seed)
    rng = random.Random(seed)
    taken = 0
    for _ in range(60):
        spec = rng.choice(SPECS)
        config = config_lib.load(spec)
        program = config_lib.PROGRAMS.get(config.get("task"), "mser_jax.main")
        arguments = [mutated(rng, config) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        arguments += rng.sample(arguments, rng.randrange(len(arguments) + 1))
        try:
            made = parsed(*arguments, spec=spec, program=program)
        except SystemExit as stopped:
            told = capsys.readouterr().err
            assert stopped.code == 2 and told.startswith("error: "), (spec, arguments, told)
            assert "Traceback" not in told and len(told) < 60_000, (spec, arguments)
            continue
        taken += 1
        config_lib.config_hash(made)
        for key in ranges.BUDGETS:
            budget = dict(config_lib.leaves(made)).get(key)
            if budget:
                config_lib.steps(budget, made.train.batch_size, config_lib.DataSize(10, 0.1))
    assert 0 < taken < 40, "some of them are right"


def test_a_base_config_is_in_range():
    config_lib.check(common.base())
