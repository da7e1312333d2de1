"""Generating data sets: whole, killed, failing, growing; with an engine that hums, and once with espeak-ng."""

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
from etils import epath

from mser_jax import config as config_lib
from mser_jax.config import ConfigError
from mser_jax.corpora.record import Utterance
from mser_jax.corpora.registry import open_corpus
from mser_jax.m5ser import chunks, engines, finish, generate
from mser_jax.m5ser.filters import Verdict

ROOT = pathlib.Path(__file__).parents[2]
HERE = ["--direct_num_workers=1", "--direct_running_mode=in_memory"]
TEXTS = """text\tlanguage\temotion\tparallel_id
The river froze over.\ten\tneutral\tr
Nobody came to the party.\ten\tsad\t
Der Fluss fror zu.\tde\tneutral\tr
Zum Fest kam niemand, nicht einer.\tde\tsad\t
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A config of the humming engine; `toy.faults / "fail"` and its like make it fail."""
    monkeypatch.setitem(engines.ENGINES, "toy", "toy_engine:ToyEngine")
    (tmp_path / "texts.tsv").write_text(TEXTS)
    (tmp_path / "faults").mkdir()
    config = config_lib.load(str(ROOT / "configs" / "m5ser.py"))
    config.languages, config.emotions, config.intensities = "en,de", "angry,happy,sad", (0.5, 1.0)
    config.texts.sources = f"tsv:{tmp_path / 'texts.tsv'}"
    config.engines.espeak.enabled = False
    with config.unlocked():
        config.engines.toy = {
            "enabled": True, "voices": "m1,f1", "validation_voices": "deep",
            "options": {"faults": str(tmp_path / "faults"), "seconds": 0.3},
        }  # fmt: skip
        config.filters = {}
    config.card.enabled = False
    config.chunk_utterances, config.limit = 9, "60 utterances"
    return config


def faults(config):
    return pathlib.Path(config.engines.toy.options.faults)


def spoken(config):
    log = faults(config) / "log"
    return log.read_text().splitlines() if log.exists() else []


def contents(folder):
    """{id: everything of the record} in the order of the records."""
    corpus = open_corpus(f"m5ser:{folder}")
    found = [Utterance.from_example(corpus.source[row]) for row in range(len(corpus.source))]
    assert [u.id for u in found] == corpus.index["id"].to_pylist()
    assert len({u.id for u in found}) == len(found)
    return {u.id: repr(u) for u in found}


def test_a_data_set_from_its_config(toy, tmp_path):
    report = generate.run(toy, str(tmp_path / "set"), HERE)
    corpus = open_corpus(f"m5ser:{tmp_path / 'set'}")
    assert corpus.name == "m5ser-set" and len(corpus.source) == len(corpus.index) == report["built"] == 60
    rows = corpus.index.to_pylist()
    for key in ("speaker", "language", "transcript", "split"):
        counts = collections.Counter((row[key], row["emotion"]) for row in rows)
        for value in {row[key] for row in rows}:
            assert len({counts[value, emotion] for emotion in ("angry", "happy", "sad")}) == 1, (key, value)
    first = Utterance.from_example(corpus.source[0])
    assert (first.corpus, first.domain, first.sampling_rate) == ("m5ser", "toy", 16000)
    assert {row["split"] for row in rows if row["speaker"] == "m5ser:toy/deep"} == {"validation"}
    assert {row["gender"] for row in rows} == {"male", "female"}
    assert {row["parallel_id"] for row in rows} == {"r", ""}
    assert report["hours_total"] == pytest.approx(sum(row["duration_s"] for row in rows) / 3600, abs=1e-4)
    assert report["pass_rate"] == 1 and not report["rejected_by_reason"]
    assert "60 of 60 utterances passed (100.0%)" in finish.summary(report)


def test_everything_used_is_beside_the_record(toy, tmp_path):
    generate.run(toy, str(tmp_path / "set"), HERE)
    from mser_jax.m5ser.dataset import M5ser

    table = M5ser.from_argument(str(tmp_path / "set")).index_with_provenance().to_pylist()
    texts = {row["transcript"]: json.loads(row["provenance"]) for row in table}
    told = texts["Zum Fest kam niemand, nicht einer."]
    assert told["engine"] == "toy" and told["voice"] in ("m1", "f1", "deep") and told["intensity"] in (0.5, 1.0)
    assert told["content"] == "sad" and told["text_source"] == "tsv" and told["parameters"]["pitch"] >= 0
    for row in table:
        told = json.loads(row["provenance"])
        call = (row["transcript"], row["language"], told["voice"], row["emotion"], told["intensity"], told["seed"])
        assert repr(call) in spoken(toy), "speaks the same again"


def test_two_runs_make_the_same_and_a_second_run_makes_nothing(toy, tmp_path):
    for name in ("a", "b"):
        generate.run(toy, str(tmp_path / name), HERE)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    before, stamp = len(spoken(toy)), (tmp_path / "a" / "index.parquet").stat().st_mtime_ns
    generate.run(toy, str(tmp_path / "a"), HERE)
    assert len(spoken(toy)) == before and (tmp_path / "a" / "index.parquet").stat().st_mtime_ns == stamp


def test_a_higher_limit_goes_on_and_a_lower_one_cuts(toy, tmp_path):
    toy.limit = "24 utterances"
    generate.run(toy, str(tmp_path / "a"), HERE)
    small = contents(tmp_path / "a")
    toy.limit = "60 utterances"
    generate.run(toy, str(tmp_path / "a"), HERE)
    assert len(spoken(toy)) == 60, "what was there is not spoken again"
    large = contents(tmp_path / "a")
    assert list(large)[:24] == list(small) and all(large[key] == small[key] for key in small)
    generate.run(toy, str(tmp_path / "b"), HERE)
    assert contents(tmp_path / "b") == large
    toy.limit = "24 utterances"
    generate.run(toy, str(tmp_path / "a"), HERE)
    assert contents(tmp_path / "a") == small


def test_hours(toy, tmp_path):
    toy.limit, toy.chunk_utterances = "0.02 hours", 36
    report = generate.run(toy, str(tmp_path / "a"), HERE)
    assert report["hours_total"] == pytest.approx(0.02, rel=0.08)
    assert len(spoken(toy)) == report["planned"], "the utterances that told how long they are were kept"
    toy.limit = "0.005 hours"
    small = generate.run(toy, str(tmp_path / "a"), HERE)
    assert small["hours_total"] == pytest.approx(0.005, abs=0.002) and len(spoken(toy)) == report["planned"]
    assert len(contents(tmp_path / "a")) == small["built"]


def test_an_unfinished_set_is_refused_and_goes_on(toy, tmp_path, monkeypatch):
    folder = tmp_path / "set"

    def stop(self, folder, number, cut):
        if number == 3:
            raise OSError("the cable is out")
        return real(self, folder, number, cut)

    real = generate.pipeline.Tools.make
    with monkeypatch.context() as patch:
        patch.setattr(generate.pipeline.Tools, "make", stop)
        with pytest.raises(Exception, match="the cable is out"):
            generate.run(toy, str(folder), HERE)
    with pytest.raises(RuntimeError, match=r"is not finished yet. Run again python -m mser_jax.m5ser"):
        open_corpus(f"m5ser:{folder}")
    generate.run(toy, str(folder), HERE)
    generate.run(toy, str(tmp_path / "whole"), HERE)
    assert contents(folder) == contents(tmp_path / "whole")
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_corpus(f"m5ser:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="m5ser:DIR"):
        open_corpus("m5ser")


def test_where_an_engine_failed_a_resumed_run_tries_again(toy, tmp_path):
    (faults(toy) / "fail").write_text("happy")
    with pytest.raises(RuntimeError, match="none of 60 utterances passed"):
        generate.run(toy, str(tmp_path / "a"), HERE)
    toy.keep_balanced = False
    report = generate.run(toy, str(tmp_path / "b"), HERE)
    assert report["rejected_by_reason"] == {"engine": 20} and report["built"] == 40
    assert "run the same command again" in finish.summary(report)
    (faults(toy) / "fail").unlink()
    (faults(toy) / "log").unlink()
    assert generate.run(toy, str(tmp_path / "b"), HERE)["built"] == 60
    assert len(spoken(toy)) == 20, "only what had failed"
    generate.run(toy, str(tmp_path / "c"), HERE)
    assert contents(tmp_path / "b") == contents(tmp_path / "c")


def test_silence_is_rejected_with_all_emotions_of_its_words(toy, tmp_path):
    (faults(toy) / "silent").write_text("sad")
    toy.keep_balanced = False
    report = generate.run(toy, str(tmp_path / "a"), HERE)
    assert report["rejected_by_reason"] == {"silent": 20}
    assert report["rejected_by_reason_and_emotion"] == {"silent": {"sad": 20}}
    assert report["pass_rates"]["emotion"] == {"angry": 1.0, "happy": 1.0, "sad": 0.0}
    rejected = pyarrow.parquet.read_table(tmp_path / "a" / "rejected.parquet")
    assert set(rejected["emotion"].to_pylist()) == {"sad"} and len(rejected) == 20


def test_what_a_filter_rejects_goes_with_its_block(toy, tmp_path, monkeypatch):
    class Low:
        name = "low"

        def measure(self, batch):
            powers = [float(np.abs(candidate.waveform.astype(np.float32)).max()) for candidate in batch]
            verdicts = zip(batch, powers, strict=True)
            return [
                Verdict(measures={"peak": p}, reason="low" * (c.line.emotion == "sad" and c.line.seed % 4 == 0))
                for c, p in verdicts
            ]

    monkeypatch.setattr(generate.pipeline.filters, "build_filters", lambda section: [Low()])
    generate.pipeline.tools.cache_clear()
    report = generate.run(toy, str(tmp_path / "a"), HERE)
    generate.pipeline.tools.cache_clear()
    low = report["rejected_by_reason"]["low"]
    assert 0 < low < 20 and report["rejected_by_reason"]["partner"] == 2 * low
    rows = open_corpus(f"m5ser:{tmp_path / 'a'}").index.to_pylist()
    assert len(rows) == 60 - 3 * low
    assert len(set(collections.Counter(row["emotion"] for row in rows).values())) == 1


def test_the_plan_asks_for_what_the_engine_lacks(toy, tmp_path):
    (faults(toy) / "refuse").write_text("angry")
    with pytest.raises(Exception, match="toy cannot be angry; try another"):
        generate.run(toy, str(tmp_path / "a"), HERE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("limit", "60 minutes", "expected e.g. '600 utterances' or '20 hours'"),
        ("languages", "en,fr", "no texts for language 'fr'"),
        ("emotions", "angry,joyous", "'joyous'"),
        ("engines.toy.voices", "m1,f2", "no voice 'f2' in en, de."),
        ("engines.toy.enabled", False, "none is enabled"),
        ("texts.sources", "xde:/x", "Did you mean 'xed'?"),
    ],
)
def test_configs_that_cannot_be_run(toy, tmp_path, key, value, message):
    config_lib.check_key(toy, key)
    section, _, leaf = key.rpartition(".")
    node = toy
    for part in filter(None, section.split(".")):
        node = node[part]
    node[leaf] = value
    with pytest.raises(ConfigError) as refused:
        generate.run(toy, str(tmp_path / "a"), HERE)
    assert message in str(refused.value)


def test_a_folder_holds_one_plan(toy, tmp_path):
    generate.run(toy, str(tmp_path / "a"), HERE)
    (tmp_path / "texts.tsv").write_text(TEXTS + "A late addition.\ten\tneutral\t\n")
    with pytest.raises(ConfigError, match="begun with other texts"):
        generate.run(toy, str(tmp_path / "a"), HERE)
    toy.seed = 1
    with pytest.raises(ConfigError, match=r"begun with another config .*seed: 0 → 1"):
        generate.run(toy, str(tmp_path / "a"), HERE)


COMMAND = [
    sys.executable, "-m", "mser_jax.m5ser", f"--config={ROOT / 'configs' / 'm5ser.py'}", "--config.chunk_utterances=12",
    "--config.limit=120 utterances", "--config.languages=en,zh", "--config.card.enabled=False", *HERE,
]  # fmt: skip


def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path):
    """Really killed: kill -9 while chunks are written, at moments that differ from run to run of the test."""

    def written():
        rows = tmp_path / "killed" / "rows"
        return len(list(rows.glob("*.parquet"))) if rows.exists() else 0

    rng, ends = random.Random(), []
    for goal in (rng.randint(1, 4), rng.randint(5, 8)):
        process = subprocess.Popen([*COMMAND, f"--workdir={tmp_path / 'killed'}"], stderr=-3, stdout=-3, cwd=ROOT)
        begin = time.monotonic()
        while process.poll() is None and written() < goal and time.monotonic() - begin < 120:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        ends.append((process.wait(), written()))
    assert all(code == -signal.SIGKILL for code, _ in ends) and 0 < ends[0][1] <= ends[1][1] < 10, ends
    config = config_lib.load(COMMAND[3].partition("=")[2])
    config.chunk_utterances, config.limit, config.languages = 12, "120 utterances", "en,zh"
    config.card.enabled = False
    for name in ("killed", "whole"):
        generate.run(config, str(tmp_path / name), HERE)
    killed, whole = contents(tmp_path / "killed"), contents(tmp_path / "whole")
    assert list(killed) == list(whole) and len(whole) == 120
    assert killed == whole, "audio and all"
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_a_shard_that_is_not_what_its_rows_say_is_made_again(toy, tmp_path):
    generate.run(toy, str(tmp_path / "a"), HERE)
    whole = contents(tmp_path / "a")
    shard = chunks.shard_path(epath.Path(tmp_path / "a"), 2)
    shard.write_bytes(shard.read_bytes()[:-100])
    (tmp_path / "a" / "index.parquet").unlink()
    os.truncate(tmp_path / "a" / "rows" / "00004.parquet", 0)
    generate.run(toy, str(tmp_path / "a"), HERE)
    assert contents(tmp_path / "a") == whole
