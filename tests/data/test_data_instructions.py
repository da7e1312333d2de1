"""Stage 2's batches: what they hold, that every host agrees, that questions stay whole."""

import dataclasses

import numpy as np
import pytest
from fake_corpora import make_corpus

from mser_jax.data import instructions, mixture, pipeline, prompts, sources
from mser_jax.data.chat import SPEECH, get_chat

SHORT, LONG = (90, 40), (120, 60)
KINDS = (("emotion", 2.0), ("language", 1.0), ("acoustics", 1.0), ("transcript", 2.0))


def make(tokenizer="byt5", num_speech=3, **options):
    chosen = {"kinds": KINDS, "short": SHORT, "long": LONG, **options}
    return instructions.Instructions(
        options=instructions.InstructionOptions(**chosen), tokenizer=tokenizer, num_speech=num_speech
    )


def facts(n=1, **more):
    told = {"emotion": "angry", "language": "de", "pitch": 1, "rate": -1, "transcript": "Guten Tag.", **more}
    return [prompts.Facts(**told)] * n


def rngs(n, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(n)]


def spoken(ids):
    return bytes(int(one) - 3 for one in ids if one >= 3).decode().removeprefix(" ")


def check_rows(batch, num_speech=3):
    """Targets are where a decoder that reads the row predicts them; yields (task, question, answer)."""
    for i in range(len(batch["tokens"])):
        tokens, mask = batch["tokens"][i], batch["token_mask"][i]
        length, count = mask.sum(), batch["target_mask"][i].sum()
        assert mask[:length].all() and batch["target_mask"][i][:count].all() and not tokens[length:].any()
        assert tokens[:num_speech].tolist() == [SPEECH] * num_speech and (tokens == SPEECH).sum() == num_speech
        targets, positions = batch["targets"][i], batch["target_positions"][i]
        assert not targets[count:].any() and not positions[count:].any()
        # A position predicts the token behind it; the last target is never read.
        np.testing.assert_array_equal(tokens[positions[: count - 1] + 1], targets[: count - 1])
        assert positions[count - 1] == length - 1
        answer_start = positions[0] + 1
        yield instructions.KINDS[batch["task"][i]], spoken(tokens[num_speech:answer_start]).strip(), targets[:count]


def test_rows_are_question_and_answer():
    """Every kind asks one of its own questions and is answered in the question's language."""
    found = {}
    maker = make()
    for step in range(40):
        batch = maker(facts(8), rngs(8, step), np.random.default_rng(step))
        assert batch["tokens"].shape in ((8, SHORT[0]), (8, LONG[0]))
        for kind, question, answer in check_rows(batch):
            (language,) = {one for one in instructions.languages() if question in instructions.questions(kind, one)}
            assert answer[-1] == get_chat("byt5", 3).end
            found.setdefault(kind, {}).setdefault(language, set()).add(spoken(answer))
    assert {kind: len(answers) for kind, answers in found.items()} == dict.fromkeys(instructions.KINDS, 6)
    assert found["emotion"]["de"] == {"Wut"} and found["language"]["fr"] == {"allemand"}
    assert found["acoustics"]["en"] == {"high-pitched and slow"} and found["transcript"]["zh"] == {"Guten Tag."}


def test_every_language_has_three_paraphrases_of_each_kind_and_words_for_all_emotions():
    assert len(instructions.languages()) >= 6 and set(instructions.languages()) == set(prompts.prompt_languages())
    for language in instructions.languages():
        asked = [text for kind in instructions.KINDS for text in instructions.questions(kind, language)]
        assert len(set(asked)) == len(asked)
        assert all(len(instructions.questions(kind, language)) >= 3 for kind in instructions.KINDS)
        assert len(prompts.all_words("emotion", language)) == 7


def test_what_an_utterance_lacks_is_asked_for_its_emotion():
    bare = facts(6, language="xx", pitch=0, rate=0, transcript="")
    for step in range(10):
        batch = make()(bare, rngs(6, step), np.random.default_rng(step))
        assert {kind for kind, *_ in check_rows(batch)} == {"emotion"}
    unknown = make()(facts(6, emotion="bored", language="xx", pitch=0, rate=0), rngs(6), np.random.default_rng(0))
    for kind, question, answer in check_rows(unknown):
        if kind == "emotion":
            assert question in instructions.questions("emotion", "en") and spoken(answer) == "bored"


def test_a_long_transcript_is_cut_and_its_question_kept():
    batch = make(kinds=(("transcript", 1.0),))(facts(4, transcript="ä" * 80), rngs(4), np.random.default_rng(0))
    for _, question, answer in check_rows(batch):
        assert any(question in instructions.questions("transcript", one) for one in instructions.languages())
        prompt = len(get_chat("byt5", 3).prompt(question))
        assert len(answer) == min(LONG[1], LONG[0] - prompt + 1)
        assert get_chat("byt5", 3).end not in answer, "an end that was cut off is not taught"


def test_shares_of_steps_and_kinds():
    maker, counts, long_steps = make(), np.zeros(4), 0
    for step in range(600):
        batch = maker(facts(4), rngs(4, step), np.random.default_rng(step))
        long_steps += batch["tokens"].shape[1] == LONG[0]
        counts += np.bincount(batch["task"], minlength=4)
    assert long_steps / 600 == pytest.approx(2 / 6, abs=0.06)
    np.testing.assert_allclose(counts / counts.sum(), np.array([2, 1, 1, 2]) / 6, atol=0.06)


@pytest.fixture(scope="module")
def table():
    cells = [(language, emotion, 0.3) for language in ("en", "de") for emotion in ("angry", "sad") for _ in range(12)]
    return sources.join([(make_corpus("a", cells), 1.0)])


def take(table, steps, **kwargs):
    options = pipeline.TrainOptions(
        batch_size=8, mixture=mixture.MixtureOptions(length_classes=(0.4,)), text=make(),
        read=pipeline.ReadOptions(num_threads=0, num_workers=kwargs.pop("workers", 0)),
    )  # fmt: skip
    with pipeline.train_batches(table, options, seed=5, **kwargs) as batches:
        return [next(batches) for _ in range(steps)]


def test_batches_do_not_depend_on_processes_workers_or_where_one_starts(table):
    whole = take(table, 8)
    assert len({batch["tokens"].shape for batch in whole}) == 2
    assert all({"caption_id"}.isdisjoint(batch) for batch in whole)
    names = ("tokens", "targets", "target_positions", "task", "record")
    for other, start in ((take(table, 5, start=3), 3), (take(table, 8, workers=1), 0)):
        for one, two in zip(other, whole[start:], strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    parts = [take(table, 8, process_index=p, process_count=2) for p in range(2)]
    for step, batch in enumerate(whole):
        for name in names:
            joined = np.stack([part[step][name] for part in parts], 1).reshape(batch[name].shape)
            np.testing.assert_array_equal(joined, batch[name], err_msg=name)


def test_shapes_are_those_of_the_longest_batch():
    batch = make(kinds=(("transcript", 1.0),))(facts(2), rngs(2), np.random.default_rng(0))
    told = make().shapes()
    assert {name: (value.shape[1:], value.dtype) for name, value in batch.items()} == told


def test_rooms_that_cut_a_question_are_refused():
    make().check(384)
    with pytest.raises(ValueError, match=r"sequences.short=\(60, 40\): its questions and answers need"):
        make(short=(60, 40)).check(384)
    with pytest.raises(ValueError, match=r"sequences\.long=.*a question alone"):
        make(long=(30, 20)).check(384)
    with pytest.raises(ValueError, match="table of 100 rows"):
        make().check(100)
    with pytest.raises(ValueError, match="expected weights"):
        dataclasses.replace(make().options, kinds=(("emotions", 1.0),))
    with pytest.raises(ValueError, match="expected some of"):
        make(languages=("xx",))
