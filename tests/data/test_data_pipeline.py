import ast
import dataclasses
import os
import pathlib
import sys

import grain
import numpy as np
import pytest
from fake_corpora import cells, flac, make_corpus, tone

from mser_jax.data import audio, mixture, pipeline, prompts, sources
from mser_jax.data.text import get_tokenizer, hash31

CLASSES = (0.2, 0.4, 0.6)
NOISY = audio.Augmentation(speed=0.1, gain_db=6, noise_probability=0.5)


def options(workers=0, threads=0, **kwargs):
    kwargs.setdefault("augmentation", NOISY)
    chosen = mixture.MixtureOptions(length_classes=CLASSES, pair_languages=kwargs.pop("pairs", False))
    captions = prompts.CaptionOptions(transcript_probability=0.5)
    read = pipeline.ReadOptions(num_workers=workers, num_threads=threads, prefetch=2)
    text = prompts.Captions(options=captions, max_tokens=kwargs.pop("max_tokens", 96))
    return pipeline.TrainOptions(batch_size=8, mixture=chosen, text=text, read=read, **kwargs)


def take(table, chosen, steps, **kwargs):
    with pipeline.train_batches(table, chosen, **{"seed": 3, **kwargs}) as batches:
        return [next(batches) for _ in range(steps)]


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert set(a) == set(b)
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_training_batch_follows_the_contract(two_corpora):
    table = two_corpora
    names = table.vocabularies
    tokenizer = get_tokenizer("byt5")
    for batch in take(table, options(), 12):
        assert {name: value.dtype.name for name, value in batch.items()} == {
            **dict.fromkeys(["num_samples", "tokens", "caption_id", "emotion", "language", "speaker"], "int32"),
            **dict.fromkeys(["domain", "parallel_id", "record"], "int32"),
            **dict.fromkeys(["token_mask", "valid"], "bool"),
            "waveform": "int16",
            "reason": "int8",
        }
        assert {len(value) for value in batch.values()} == {8} and batch["valid"].all()
        assert batch["waveform"].shape[1] in {round(s * 16_000) for s in CLASSES}
        for i, row in enumerate(batch["record"]):
            n = batch["num_samples"][i]
            assert 0 < n <= batch["waveform"].shape[1] and not batch["waveform"][i, n:].any()
            assert batch["waveform"][i, :n].any()
            assert names.languages[batch["language"][i]] == table["primary"][row]
            assert names.speakers[batch["speaker"][i]] == table["speaker"][row]
            assert batch["emotion"][i] == table["emotion_id"][row]
            ids = batch["tokens"][i][batch["token_mask"][i]]
            text = (ids[:-1] - 3).astype(np.uint8).tobytes().decode("utf-8", "ignore")
            if len(ids) == 96:
                continue  # cut, perhaps inside a character
            assert tokenizer.encode([text], 96)[0][0].tolist() == batch["tokens"][i].tolist()
            assert hash31(text) == batch["caption_id"][i]
        assert not batch["tokens"][~batch["token_mask"]].any()


def test_without_augmentation_the_waveform_is_the_recording(two_corpora):
    records = sources.RecordSource(two_corpora)
    cropped = 0
    for batch in take(two_corpora, options(augmentation=audio.Augmentation()), 20):
        for row, wave, n in zip(batch["record"], batch["waveform"], batch["num_samples"], strict=True):
            whole = audio.decode(records.audio(row))
            assert n == min(len(whole), len(wave))
            if n == len(whole):
                np.testing.assert_array_equal(wave[:n], whole)
            else:
                windows = np.lib.stride_tricks.sliding_window_view(whole, n)
                assert (windows == wave).all(axis=1).any()
                cropped += 1
    assert cropped > 3


@pytest.mark.parametrize("pairs", [False, True])
def test_resume_is_bit_identical(two_corpora, pairs):
    chosen = options(pairs=pairs)
    whole = take(two_corpora, chosen, 9)
    assert_equal(take(two_corpora, chosen, 4, start=5), whole[5:])
    assert len({batch["waveform"].shape for batch in whole}) > 1


def test_threads_and_workers_change_nothing(two_corpora):
    whole = take(two_corpora, options(), 7)
    assert_equal(take(two_corpora, options(threads=3), 7), whole)
    assert_equal(take(two_corpora, options(workers=2), 5, start=2), whole[2:])


def test_processes_share_the_global_batch(two_corpora):
    def rows(batches, step):
        return sorted(
            (int(r), int(n), int(c), bytes(w))
            for batch in (b[step] for b in batches)
            for r, n, c, w in zip(
                batch["record"], batch["num_samples"], batch["caption_id"], batch["waveform"], strict=True
            )
        )

    whole = [take(two_corpora, options(), 6)]
    for count in (2, 4, 8):
        parts = [take(two_corpora, options(), 6, process_index=p, process_count=count) for p in range(count)]
        for step in range(6):
            assert len({part[step]["waveform"].shape for part in parts}) == 1
            assert rows(parts, step) == rows(whole, step)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_evaluation_epoch(two_corpora, count):
    table = two_corpora
    kwargs = {"batch_size": 12, "length_classes": CLASSES, "process_count": count}
    found = []
    for p in range(count):
        with pipeline.eval_batches(table, process_index=p, **kwargs) as batches:
            found.append(list(batches))
            assert len(batches) == len(found[-1])
    assert len({len(batches) for batches in found}) == 1
    every = [batch for batches in found for batch in batches]
    record = np.concatenate([batch["record"] for batch in every])
    valid = np.concatenate([batch["valid"] for batch in every])
    assert sorted(record[valid].tolist()) == list(range(len(table)))
    assert (record[~valid] == -1).all()
    records = sources.RecordSource(table)
    for batch in every:
        assert "tokens" not in batch and "caption_id" not in batch
        for i, row in enumerate(batch["record"]):
            n, wave = batch["num_samples"][i], batch["waveform"][i]
            if row < 0:
                assert n == len(wave) and not wave.any() and batch["emotion"][i] == -1
                continue
            whole = audio.decode(records.audio(row))
            start = max(0, len(whole) - len(wave)) // 2
            np.testing.assert_array_equal(wave[:n], whole[start : start + n])
            assert batch["emotion"][i] == table["emotion_id"][row]


def test_evaluation_uses_the_vocabularies_of_training(two_corpora):
    training = two_corpora.filter(exclude_languages="zh").vocabularies
    held_out = two_corpora.filter(include_languages="zh,de")
    with pipeline.eval_batches(
        held_out,
        batch_size=16,
        length_classes=CLASSES,
        vocabularies=training,
        read=pipeline.ReadOptions(num_workers=0),
    ) as batches:
        for batch in batches:
            for row, language in zip(batch["record"], batch["language"], strict=True):
                expected = -1 if row < 0 or held_out["primary"][row] == "zh" else training.languages.index("de")
                assert language == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_record_becomes_an_invalid_row(two_corpora, workers, caplog):
    data = two_corpora.sources[0].data
    data[3] = data[3] | {"audio": data[3]["audio"][: len(data[3]["audio"]) // 2]}
    data[4] = data[4] | {"audio": b"RIFF"}
    data[5] = data[5] | {"audio": b""}
    read = pipeline.ReadOptions(num_workers=workers, num_threads=0)
    with pipeline.eval_batches(two_corpora, batch_size=8, length_classes=CLASSES, read=read) as batches:
        found = list(batches)
        assert batches.unreadable == {3: "truncated", 4: "unreadable", 5: "empty"}
    record, valid = (np.concatenate([batch[name] for batch in found]) for name in ("record", "valid"))
    assert sorted(record[~valid & (record >= 0)].tolist()) == [3, 4, 5]
    for batch in found:
        assert not batch["waveform"][~batch["valid"]].any() and (batch["emotion"][~batch["valid"]] == -1).all()
    if not workers:
        assert all(f"a-000{i}" in caplog.text for i in (3, 4, 5))
    one_bad = two_corpora.filter(emotions=("angry", "happy", "sad"))
    with pipeline.train_batches(one_bad, options(workers=workers), seed=0) as batches:
        found = [next(batches) for _ in range(40)]
        bad = {int(row) for batch in found for row in batch["record"][~batch["valid"]]}
        assert batches.unreadable.keys() == bad != set()
    assert all(batch["token_mask"].any(axis=1).all() and (batch["num_samples"] > 0).all() for batch in found)


def test_other_rates_and_channels_come_out_at_16_khz():
    corpus = make_corpus("a", cells(["en"], ["sad"], 3))
    stereo = np.stack([tone(0.3, 44_100)] * 2, axis=1)
    corpus.source[0]["audio"], corpus.source[1]["audio"] = flac(stereo, 44_100), flac(tone(0.3, 8000), 8000)
    with pipeline.eval_batches(sources.join([(corpus, 1.0)]), batch_size=3, length_classes=CLASSES) as batches:
        (batch,) = batches
    assert batch["valid"].all() and np.abs(batch["num_samples"] - 4800).max() <= 1


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_no_two_draws_share_their_random_numbers(two_corpora, monkeypatch, seed):
    """Every (key, counter) of some steps: shuffling, pairs, audio, captions and the step itself, in all classes."""
    made, philox = [], np.random.Philox

    def spy(*args, key=None, counter=0, **kwargs):
        if key is not None:
            made.append((tuple(np.asarray(key).tolist()), tuple(np.broadcast_to(counter, 4).tolist())))
            kwargs |= {"key": key, "counter": counter}
        return philox(*args, **kwargs)

    monkeypatch.setattr(np.random, "Philox", spy)
    chosen = options(pairs=True, augmentation=audio.Augmentation(speed=0.1, noise_probability=1.0))
    steps = 12
    found = take(two_corpora, dataclasses.replace(chosen, read=pipeline.ReadOptions(num_threads=0)), steps, seed=seed)
    assert len({batch["waveform"].shape[1] for batch in found}) > 1, "several length classes"
    expected = steps * (8 + 8 + 1 + 4)  # audio, captions, the step, a partner for every second row
    assert expected <= len(made) and len(set(made)) == len(made)


def test_tokens_are_cut_to_max(two_corpora):
    for batch in take(two_corpora, options(max_tokens=12), 3):
        assert batch["tokens"].shape == (8, 12)
        assert (batch["tokens"][:, -1] == 1).all() or not batch["token_mask"].all()
        assert batch["token_mask"].sum(axis=1).max() == 12


def test_unlabelled_records_are_refused_in_training():
    table = sources.join([(make_corpus("a", cells(["en"], ["sad", ""], 8)), 1.0)])
    with pytest.raises(ValueError, match="8 of 16"):
        pipeline.train_batches(table, options(), seed=0)


class Probe(grain.transforms.Map):
    """What a worker process can see."""

    def map(self, element):
        del element
        bridge = sys.modules.get("jax._src.xla_bridge")
        hidden = all(os.environ[name] == "" for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"))
        platform = sys.modules["jax"].config.jax_platforms if "jax" in sys.modules else "cpu"
        started = bool(bridge and bridge.backends_are_initialized())
        return np.array([os.getpid(), hidden, platform == os.environ["JAX_PLATFORMS"] == "cpu", started])


def test_workers_cannot_see_accelerators(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    dataset = grain.MapDataset.range(4).map(Probe())
    iterator = iter(pipeline._iterate(dataset, pipeline.ReadOptions(num_workers=2)))
    try:
        found = np.stack(list(iterator))
    finally:
        iterator.close()
    assert len(set(found[:, 0])) == 2 and os.getpid() not in found[:, 0]
    assert found[:, 1].all() and found[:, 2].all() and not found[:, 3].any()


def test_only_device_imports_jax():
    folder = pathlib.Path(pipeline.__file__).parent
    for path in folder.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
        assert ("jax" in names) == (path.name == "device.py"), path.name
