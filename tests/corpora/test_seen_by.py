"""The registry of who has seen what: its corpora exist, all has a source, and rows are refused the word zero-shot."""

import pytest

from mser_jax.corpora import public, registry, seen_by
from mser_jax.evaluation import rows


def test_every_statement_has_a_source_and_names_corpora_that_there_are():
    known = {*public.NAMES, *seen_by.others()}
    names = [model.name for model in seen_by.models()]
    assert len(set(names)) == len(names) > 15
    for model in seen_by.models():
        assert model.saw and model.matches
        for saw in model.saw:
            assert "http" in saw.source and (saw.corpora or saw.languages), model.name
            assert set(saw.corpora) <= known, f"{model.name}: {set(saw.corpora) - known}"
            assert all(tag.islower() and len(tag) in (2, 3) for tag in saw.languages), model.name
    used = {corpus for model in seen_by.models() for saw in model.saw for corpus in saw.corpora}
    assert set(seen_by.others()) <= used


def test_the_languages_of_what_was_seen_with_labels_count_as_seen():
    for model in seen_by.models():
        languages = {tag for saw in model.saw for tag in saw.languages}
        for corpus in {name for saw in model.saw if saw.labels for name in saw.corpora} & {*public.NAMES}:
            spoken = {rows.primary(tag) for tag in registry.corpus_class(corpus).FACTS.languages} - {""}
            assert spoken <= languages, f"{model.name} saw {corpus} in {spoken}"


@pytest.mark.parametrize(
    "name, model",
    [
        ("emotion2vec_plus_large", "emotion2vec+"),
        ("emotion2vec_base", "emotion2vec"),
        ("EMOTION2VEC+", "emotion2vec+"),
        ("whisper-large-v3-turbo", "Whisper"),
        ("whisper-base.en", "Whisper"),
        ("wav2vec2-large-xlsr-53", "XLS-R"),
        ("wav2vec2-base-superb-er", "SUPERB-ER"),
        ("qwen2_audio_encoder", "Qwen2-Audio"),
        ("Qwen-Audio-Chat", "Qwen-Audio"),
        ("audio-flamingo-2", "Audio Flamingo 1 and 2"),
    ],
)
def test_models_are_known_by_their_names(name, model):
    assert seen_by.find(["", name]).name == model


@pytest.mark.parametrize("name", ["whisper-base-finetuned-ravdess", "my-wav2vec2", "whisper", "xlm-roberta-large", ""])
def test_what_others_made_of_a_model_is_not_that_model(name):
    assert seen_by.find([name]) is None


def test_rows_are_refused_the_word_zero_shot():
    trained = {"corpora": ["emovo"], "languages": ["it"]}
    emotion2vec, whisper = seen_by.find(["emotion2vec_plus_base"]), seen_by.find(["whisper-base"])
    both = emotion2vec.with_labels()
    why = rows.why_not_zero_shot("EmoDB", "de-DE", trained, both)
    assert "corpus EmoDB in pretraining of emotion2vec+ (https://huggingface.co/emotion2vec" in why
    assert "language de in pretraining of emotion2vec+" in why and rows.protocol("EmoDB", "de", trained, both) == (
        "in_corpus"
    )
    # A corpus by another spelling of its name, and one that is new in a language that is not.
    assert "corpus CREMA-D" in rows.why_not_zero_shot("CREMA-D", "en", trained, both)
    assert rows.protocol("nemo", "pl", trained, both) == "leave_one_corpus_out"
    assert rows.why_not_zero_shot("resd_thai", "th", trained, both) == ""
    # Sound without labels refuses nothing; labels of nobody knows which language refuse everything.
    assert whisper.with_labels() == {} and rows.why_not_zero_shot("emodb", "de", trained, whisper.with_labels()) == ""
    unknown = rows.why_not_zero_shot("emodb", "de", trained, seen_by.find(["Qwen2-Audio-7B"]).with_labels())
    assert "speech of unknown language in pretraining of Qwen2-Audio" in unknown


def test_who_saw_a_corpus():
    ravdess = {(model.name, saw.labels, what) for model, saw, what in seen_by.by_corpus("ravdess", ["en"])}
    assert {("emotion2vec+", True, "corpus"), ("Audio Flamingo 3", True, "corpus")} <= ravdess
    assert ("Audio Flamingo 1 and 2", True, "language") in ravdess and "Whisper" not in {name for name, *_ in ravdess}
    assert ("emotion2vec", False, "corpus") in {(m.name, s.labels, w) for m, s, w in seen_by.by_corpus("iemocap")}
