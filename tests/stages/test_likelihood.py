"""Label likelihood against a full forward pass for each label; prior, ensemble and mesh; generation end to end."""

import json

import jax
import numpy as np
import pytest
import soundfile
from scipy.special import log_softmax, softmax

from configs import evaluate as evaluate_config
from configs import stage2
from mser_jax import config as config_lib
from mser_jax import evaluate, predict, stages, state, train
from mser_jax.checkpoint import Checkpoints
from mser_jax.data import audio, device, instructions, prompts
from mser_jax.evaluation import calibration, predictions, transduction
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.stages import generating, likelihood, scoring

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LABELS = ("Wut", "happy", "bored", "sad", "sadly")
METADATA = {
    "trained_on": {"corpora": ["synthetic"], "languages": ["en"]},
    "num_classes": {"language": 8, "speaker": 64, "domain": 2},
    "size": {"examples": 100, "hours": 0.1},
}


@pytest.fixture(scope="module")
def small(tiny):
    """small(**{"section.key": value}) -> config of stage 2 on the corpus of these tests."""

    def make(**overrides):
        config, first = stage2.get_config(), tiny()
        for sizes in (config.speech_encoder.sizes, config.model.qformer):
            sizes.update({"num_layers": 1, "width": 48, "num_heads": 2, "mlp_width": 96})
        config.llm.sizes.update(
            {"num_layers": 2, "width": 48, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "mlp_width": 96}
        )
        config.mesh.replicated_limit = 1.0
        config.data.update({"corpora": first.data.corpora, "data_dir": first.data.data_dir, "length_classes": (3.0,)})
        config.evaluate.update(
            {"bootstrap_samples": 20, "paraphrases": 2, "prompt_languages": "en,de", "prior": "content_free"}
        )
        for key, value in overrides.items():
            section, last = key.split(".")
            config[section][last] = value
        return config

    return make


def opened(config, mesh):
    """(stage, random parameters that are not near zero) without data."""
    stage = stages.make(config, METADATA)
    params = state.initial_params(state.define(stage.build), jax.random.key(3))
    return stage, jax.tree.map(lambda leaf: jax.device_put(leaf, mesh_lib_whole(mesh)), params)


def mesh_lib_whole(mesh):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def speech(rows, mesh):
    rng = np.random.default_rng(5)
    waveform = rng.integers(-2000, 2000, (rows, 48_000)).astype(np.int16)
    return device.to_device({"waveform": waveform, "num_samples": np.full(rows, 40_000, np.int32)}, mesh)


def naive(stage, params, question, words):
    """(waveform, num_samples) -> mean log-probability of a token of each word, by a full forward pass of its own."""
    model, chat = state.define(stage.build).merge(params), stage.chat
    ids = [chat.label(word) for word in words]
    close = any(a != b and b[: len(a)] == a for a in ids for b in ids)
    ids = [np.array([*label, chat.end] if close else label) for label in ids]
    prompt = chat.prompt(question)
    longest = max(map(len, ids))
    rows = [np.concatenate([prompt, label[:-1]]) for label in ids]
    tokens = np.stack([np.pad(row, (0, len(prompt) + longest - len(row))) for row in rows]).astype(np.int32)
    mask = np.arange(tokens.shape[1]) < np.array([len(row) for row in rows])[:, None]
    places = np.broadcast_to(len(prompt) - 1 + np.arange(longest), (len(ids), longest))

    @jax.jit
    def logits(waveform, num_samples):
        soft = model.soft_tokens(model.encode_speech(waveform, num_samples))
        return model.answer_logits(soft, tokens, mask, places, rng=None)

    def score(waveform, num_samples):
        speech_of_each = (np.repeat(np.asarray(x), len(ids), axis=0) for x in (waveform, num_samples))
        logp = log_softmax(np.asarray(logits(*speech_of_each), np.float64), -1)
        return np.array([row[np.arange(len(label)), label].mean() for row, label in zip(logp, ids, strict=True)])

    return score


def test_equals_a_forward_pass_for_each_label(small):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        stage, params = opened(small(**{"evaluate.paraphrases": 1}), mesh)
        batch = speech(4, mesh)
        scorer = stage.scorer(LABELS, languages=(), mesh=mesh)
        ours, each = np.asarray(scorer(params, batch)), np.asarray(scorer.log_likelihoods(params, batch))
        prior, clips = scorer.prior(params), audio.content_free(48_000, 4)
        asked = scorer.questions
        assert each.shape == (4, 2, 5) and [question.language for question in asked] == ["en", "de"]
        assert asked[1].words == ("Wut", "Freude", "bored", "Trauer", "sadly")
        score = naive(stage, params, asked[1].text, asked[1].words)
        one = score(batch["waveform"][1:2], batch["num_samples"][1:2])
        np.testing.assert_allclose(each[1, 1], one, atol=1e-4)
        silent = [score(clips[j : j + 1], np.full(1, 48_000, np.int32)) for j in range(4)]
        np.testing.assert_allclose(prior[1], np.mean(silent, 0), atol=1e-4)
        np.testing.assert_allclose(ours, softmax((each - prior).mean(1), -1), atol=1e-6)
        assert np.abs(ours - softmax(each.mean(1), -1)).max() > 1e-4, "the prior does something"


def test_the_mesh_does_not_matter(small):
    found = []
    for devices in (1, 2):
        mesh = mesh_lib.make_mesh(1, devices, devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            config = small(**{"evaluate.paraphrases": 1, "evaluate.prior": "none"})
            stage, params = opened(config, mesh)
            scorer = stage.scorer(("angry", "happy"), languages=("en",), mesh=mesh)
            found.append(np.asarray(scorer(params, speech(2, mesh))))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_questions():
    found = likelihood.ensemble(("furious", "traurig"), ("fr", "en"), 3)
    assert [question.text for question in found[:3]] == list(instructions.questions("emotion", "fr")[:3])
    assert {question.words for question in found} == {("furious", "tristesse"), ("furious", "sadness")}
    assert prompts.label_word("sad", "fr") == "tristesse"
    for languages, paraphrases in ((("tlh",), 1), ((), 1), (("en",), 0)):
        with pytest.raises(ValueError, match="some of"):
            likelihood.ensemble(("a", "b"), languages, paraphrases)


def test_evaluators_from_data_to_results(small, tmp_path):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        config = small(
            **{
                "evaluate.paraphrases": 1,
                "evaluate.include_languages": "fa",
                "evaluate.dev_utterances": 16,
                "evaluate.prompt_languages": "de",
                "evaluate.closed_set": True,
                "evaluate.adapt": "none,corpus,corpus_em",
            }
        )
        config.evaluate.label_space = "angry,sad,neutral"
        config.evaluate.extractors = "levenshtein,exact"
        stage = stages.make(config)
        params = state.initial_params(state.define(stage.build), jax.random.key(3))
        evaluators = {evaluator.name: evaluator for evaluator in stage.evaluators(mesh)}
        values = {name: dict(e.run(params, 7, tmp_path, tmp_path)) for name, e in evaluators.items()}
        scored = evaluators["label_likelihood"]
        raw, places = scored._over(params, scored._evaluation.table)
        kept, owner = scoring.by_utterance(places)
        inside = scored._evaluation.references(scored._evaluation.table, kept) >= 0
        features = scored._embed.layer_means_of(params, scored._evaluation.table, kept)
        scores = (raw - scored._scorer.prior(params)).mean(1)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["scoring"] == "label_likelihood" and results["stage"] == "finetuning"
    strict, centred, together = results["rows"]
    assert [row["adapt"] for row in results["rows"]] == ["none", "corpus", "corpus_em"]
    temperature = results["calibration"]["temperature"]
    tempered = [calibration.averaged(softmax(x / temperature, -1), owner) for x in (scores, scores - scores.mean(0))]
    answers = [np.bincount(p[inside].argmax(1), minlength=3) for p in tempered]
    for row, expected in zip((strict, centred), answers, strict=True):
        np.testing.assert_array_equal(np.array(row["confusion"]).sum(0), expected)
    assert (answers[0] != answers[1]).any()
    clustered = transduction.transduce(tempered[1], features - features.mean(0)).argmax(1)
    np.testing.assert_array_equal(np.array(together["confusion"]).sum(0), np.bincount(clustered, minlength=3))
    assert (clustered != tempered[1].argmax(1)).any() and not results["left_out"]
    assert results["rows"][0]["n"] == 48 and results["calibration"]["dev"]["n"] == 16
    assert [question["language"] for question in results["calibration"]["questions"]] == ["de"]
    assert results["calibration"]["prior"]["kind"] == "content_free"
    assert 0 <= results["calibration"]["prior"]["ua_without"] <= 1 and "ece/after" in values["label_likelihood"]
    for name in ("exact", "levenshtein"):
        written = json.loads((tmp_path / f"generation_{name}" / "results.json").read_text())
        assert written["scoring"] == f"generation:{name}" and written["rows"][0]["n"] == 48
        assert written["rows"][0]["unparseable"] == round(48 * values["generation"][f"{name}/unparseable"])
        assert written["rows"][0]["ece"] is None
    assert (tmp_path / "reliability.png").exists()


def test_predict_takes_a_checkpoint_of_stage_2(small, tmp_path, capsys):
    """What is trained is all that is saved here: the rest is made again."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    config = small(
        **{"evaluate.prompt_languages": "en", "evaluate.paraphrases": 1, "checkpointing.content": "trainable"}
    )
    with jax.set_mesh(mesh):
        program = train.build(config, mesh)
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", content=config.checkpointing.content)
        checkpoints.save(
            state.create(program.init, program.abstract), {"config": config.to_dict(), **program.stage.metadata()}
        )
        checkpoints.close()
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 20_000)
    soundfile.write(tmp_path / "a.wav", sound, 16_000)
    arguments = [f"--checkpoint={tmp_path / 'run'}", str(tmp_path / "a.wav"), "--labels=Wut,bored,sad"]
    assert predict.main([*arguments, "--language=de"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["stage"] == "finetuning" and list(answer["probabilities"]) == ["Wut", "bored", "sad"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert (answer["calibrated"], answer["temperature"]) == (False, 1.0)
    # What it says of a recording of 2.5 times the longest class is what an evaluation scores, prior and all.
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(1).uniform(-0.3, 0.3, 120_000), 16_000)
    rows = [{"path": f"{name}.wav", "language": "pl", "emotion": "sad"} for name in ("a", "long")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scored = evaluate_config.get_config()
    scored.checkpoint, scored.data.corpora = str(tmp_path / "run"), f"speech_folder:{tmp_path}"
    scored.evaluate.extractors, scored.evaluate.include_languages = "none", ""
    evaluate.run(scored, str(tmp_path / "scored"))
    found = predictions.read(tmp_path / "scored")
    assert predict.main([arguments[0], str(tmp_path / "a.wav"), str(tmp_path / "long.wav")]) == 0
    told = [list(json.loads(line)["probabilities"].values()) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(told, found.probabilities[np.argsort(found["id"])], atol=2e-5)


def test_what_cannot_be_scored_is_refused_before_training(small):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    for key, value, said in (
        ("adapt", "corpora", "expected some of"),
        ("extractors", "exat", "exat; there are exact, levenshtein"),
        ("prior", "content", "Did you mean 'content_free'"),
        ("prompt_languages", "en,tlh", "tlh"),
        ("paraphrases", 0, "expected a number ≥ 1"),
    ):
        with pytest.raises(config_lib.ConfigError, match=said):
            stages.make(small(**{f"evaluate.{key}": value}), METADATA).evaluators(mesh)


def test_labels_that_are_one_word_are_refused(small):
    """Else both have the same likelihood, and the first of them wins."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    stage = stages.make(small(), METADATA)
    for labels, said in (
        (("fear", "Angst", "sad"), "labels: labels 'fear' and 'Angst' are one and the same word in 'de': 'Angst'"),
        (("sad", "sad "), "each once"),
    ):
        with pytest.raises(config_lib.ConfigError, match=said):
            stage.scorer(labels, languages=("en", "de"), mesh=mesh)
    stage.scorer(("fear", "Angst", "sad"), languages=("en",), mesh=mesh)


def test_one_recording_on_one_device_is_answered(small, monkeypatch):
    """A batch of a single row, as predict makes it where there is one device: as the first of two."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    config = predict._for_files(small(**{"evaluate.paraphrases": 1, "evaluate.prior": "none"}))
    mesh = mesh_lib.make_mesh(mode=config.mesh.mode, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        stage, params = opened(config, mesh)
        scorer = stage.scorer(("angry", "happy"), languages=("en",), mesh=mesh)
        two = speech(2, mesh)
        found = np.asarray(scorer(params, {name: value[:1] for name, value in two.items()}))
        np.testing.assert_allclose(found, np.asarray(scorer(params, two))[:1], atol=1e-5)


def test_a_chat_model_that_ends_with_another_of_its_tokens_stops(small, monkeypatch):
    """What it is told to stop at are all ends: its program ends there, and nothing behind one is an answer."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    told = []
    monkeypatch.setattr(generating, "generate", lambda *_, stop_tokens, **__: told.append(stop_tokens))
    with jax.set_mesh(mesh):
        stage, params = opened(small(), mesh)
        monkeypatch.setattr(stage.chat, "stops", (1, 260, 270))
        writer = {e.name: e for e in stage.evaluators(mesh)}["generation"]
        with pytest.raises(TypeError):  # the stub gives nothing
            writer._answer.lower(params, speech(2, mesh))
    assert told == [(1, 260, 270)]
    assert stage.chat.decode(np.array([*stage.chat.label("anger"), 270, *stage.chat.label("The sad")])) == "anger"


def test_without_extractors_nothing_is_written(small, tmp_path):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    config = small(**{"evaluate.extractors": "none"})
    generation = {e.name: e for e in stages.make(config, METADATA).evaluators(mesh)}["generation"]
    assert not list(generation.run({}, 1, tmp_path, tmp_path)) and not list(tmp_path.iterdir())


def test_one_hot():
    assert generating.one_hot(["b", None], ("a", "b")).tolist() == [[0, 1], [0, 0]]
    assert scoring.check_labels(LABELS) == LABELS
