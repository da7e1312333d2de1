"""Stage 1 from kept features: the same result as without them, and what cannot give it is refused."""

import contextlib
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import evaluate as evaluate_config
from mser_jax import config as config_lib
from mser_jax import evaluate, stages, state, train
from mser_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.speech_reader import MeanHeadConfig
from mser_jax.models.text_encoder import TextEncoderConfig
from mser_jax.models.wav2vec2 import Wav2Vec2Config
from mser_jax.models.whisper import WhisperConfig
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import preemption
from mser_jax.stages import alignment, frozen_features

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FROZEN = (("^speech_encoder/", 0.0), (".*", 1.0))


@pytest.fixture(scope="session")
def frozen(tiny):
    """A config whose speech encoder is frozen; two length classes, and clips that are too long for both."""

    def make(**overrides):
        base = {"optim.groups": FROZEN, "data.length_classes": (1.5, 2.0), "data.augment.random_crop": False}
        base["model.frame_pool"] = 2
        return tiny(**{**base, "optim.learning_rate": 1e-3, **overrides})

    return make


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the features of this module are kept."""
    return tmp_path_factory.mktemp("features")


def small_mesh():
    return mesh_lib.make_mesh(1, 2, devices=jax.devices()[:2])


def losses_of(config, steps=5):
    """Loss, gradient norm and seconds of audio of the first steps."""
    mesh = small_mesh()
    with jax.set_mesh(mesh):
        program = train.build(config, mesh)
        train_state = state.create(program.init, program.abstract)
        program.stage.prepare(train_state.params, mesh, lambda: False)
        batches = program.stage.batches(0, mesh)
        out, shapes = [], set()
        for _ in range(steps):
            batch = next(batches)
            train_state, metrics = program.train_step(train_state, batch)
            out.append([float(metrics[name]) for name in ("loss", "grad_norm", "audio_seconds")])
            shapes.add(next(batch[name].shape[1] for name in ("states", "waveform") if name in batch))
        batches.close()
    assert len(shapes) == len(config.data.length_classes), "all length classes"
    return np.array(out)


def prepare(config, stop=lambda: False):
    """The stage of a fresh run, its features kept."""
    mesh = small_mesh()
    with jax.set_mesh(mesh):
        program = train.build(config, mesh)
        program.stage.prepare(state.create(program.init, program.abstract).params, mesh, stop)
    return program.stage


@pytest.fixture(scope="module")
def plain_losses(frozen):
    return losses_of(frozen())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-4)])
def test_training_from_kept_features_is_training_without(frozen, place, plain_losses, dtype, tolerance):
    """Five steps on two devices; relative tolerances. float16 keeps 11 bits of every state."""
    cached = losses_of(frozen(**{"data.feature_cache": str(place), "data.feature_dtype": dtype}))
    np.testing.assert_allclose(cached[:, 0], plain_losses[:, 0], rtol=tolerance)
    np.testing.assert_allclose(cached[:, 1], plain_losses[:, 1], rtol=20 * tolerance)
    np.testing.assert_array_equal(cached[:, 2], plain_losses[:, 2])


# The longest class alone: half as much to compile, and the features are the same.
ONE_CLASS = {"data.length_classes": (2.0,)}
# Captions that can all be told, and a text tower that says the same of each at every step.
TOLD = {
    **ONE_CLASS,
    "optim.groups": (("^(speech|text)_encoder/", 0.0), (".*", 1.0)),
    "data.captions.facts": 0.0,
    "data.captions.acoustics": 0.0,
    "data.captions.transcript_probability": 0.0,
}


def test_training_from_kept_captions_is_training_without(frozen, place, monkeypatch):
    """Relative tolerance 1e-5 of five losses; batches then have the tower's means in place of tokens."""
    config = frozen(**{"data.feature_cache": str(place), "data.feature_dtype": "float32", **TOLD})
    stage = prepare(config)
    with jax.set_mesh(small_mesh()) as _, contextlib.closing(stage.batches(0, small_mesh())) as batches:
        batch, spec = next(batches), stage.batch_spec(small_mesh())
        assert "tokens" not in batch and {n: (x.shape[0], x.dtype) for n, x in batch.items()} == {
            name: (leaf.shape[0], leaf.dtype) for name, leaf in spec.items()
        }
        assert batch["text_means"].shape == spec["text_means"].shape
        texts = len({row.tobytes() for row in np.asarray(batch["text_means"])})
        assert texts == len(set(np.asarray(batch["caption_id"]).tolist())) > 3
    kept = losses_of(config)
    monkeypatch.setattr(alignment.Alignment, "_texts", None)
    np.testing.assert_allclose(kept[:, 0], losses_of(config)[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"data.captions.facts": 1.0}, {"data.captions.transcript_probability": 0.1}, {"optim.groups": FROZEN},
     {"text_encoder.dropout": 0.1}, {"data.feature_cache": ""}],
)  # fmt: skip
def test_captions_are_not_kept_where_they_differ_from_step_to_step(frozen, place, change):
    stage = stages.make(frozen(**{"data.feature_cache": str(place), **TOLD, **change}))
    assert "tokens" in stage.batch_spec(small_mesh())


def test_scores_are_the_same(frozen, place, tmp_path, caplog):
    """A checkpoint of a run without features, scored from them: those of its weights, which did not change."""
    prepare(frozen(**{"data.feature_cache": str(place), "data.feature_dtype": "float32"}))
    train.run(frozen(**{"train.budget": "2 steps", "evaluate.encoder_probe": True, **ONE_CLASS}), str(tmp_path))
    plain = read(tmp_path / "evaluations" / "zero_shot" / "step_00000002")
    probed = read(tmp_path / "evaluations" / "encoder_probe" / "step_00000002" / "encoder_probe")
    config = evaluate_config.get_config()
    config.checkpoint, config.evaluate.encoder_probe = str(tmp_path), True
    config.data.feature_cache, config.data.feature_dtype = str(place), "float32"
    with caplog.at_level(logging.INFO, "absl"):
        evaluate.run(config, "")
    assert "Features of" in caplog.text and "to write" not in caplog.text
    assert rows_of(read(tmp_path / "evaluation")) == rows_of(plain)
    assert sum(row["n"] for row in plain["rows"]) > 100
    again = read(tmp_path / "evaluation" / "encoder_probe")
    assert again["scoring"] == "encoder_probe" and rows_of(probed) != rows_of(plain)
    # Both programs are compiled apart, and the probe has few utterances to learn from: one may lie on a border.
    for row, other in zip(again["rows"], probed["rows"], strict=True):
        assert [row[key] for key in ("corpus", "language", "n")] == [other[key] for key in ("corpus", "language", "n")]
        assert np.abs(np.subtract(row["confusion"], other["confusion"])).sum() <= 2


def test_a_checkpoint_is_scored_from_features_as_its_run_was_unless_told_otherwise(frozen, place):
    trained = frozen(**{"data.feature_cache": str(place), "data.feature_dtype": "float32"})
    config = evaluate_config.get_config()
    merged = evaluate.merged_config(config, trained).data
    assert (merged.feature_cache, merged.feature_dtype) == (str(place), "float32")
    config.data.feature_cache = ""
    assert evaluate.merged_config(config, trained).data.feature_cache == ""


def read(folder):
    return json.loads((folder / "results.json").read_text())


def rows_of(results):
    return [[row[name] for name in ("corpus", "language", "n", "ua", "confusion")] for row in results["rows"]]


def test_other_weights_are_noticed(frozen, place, caplog):
    """Another seed is another random encoder: its features are computed anew, the old ones named and left."""
    before = set(place.glob("*/*/key.json"))
    if not before:  # this test alone: none before it has kept any
        prepare(frozen(**{"data.feature_cache": str(place), "data.feature_dtype": "float32"}))
        before = set(place.glob("*/*/key.json"))
    with caplog.at_level(logging.WARNING, "absl"):
        prepare(frozen(**{"data.feature_cache": str(place), "data.feature_dtype": "float32", "seed": 1}))
    (added,) = set(place.glob("*/*/key.json")) - before
    assert before <= set(place.glob("*/*/key.json"))
    key = json.loads(added.read_text())["key"]
    assert f"→ {key['weights']}" in caplog.text and "but not those of this run" in caplog.text


def test_a_stop_while_features_are_computed_is_a_preemption(frozen, tmp_path):
    config = frozen(**{"data.feature_cache": str(tmp_path)})
    with pytest.raises(preemption.Preempted):
        prepare(config, stop=lambda: True)
    assert not list(tmp_path.glob("*/*/key.json"))


def test_batch_spec_and_flops_follow(frozen, place):
    plain, cached = frozen(), frozen(**{"data.feature_cache": str(place), "data.feature_dtype": "float32"})
    stage, mesh = prepare(cached), small_mesh()
    with jax.set_mesh(mesh):
        batches = stage.batches(0, mesh)
        spec = stage.batch_spec(mesh)
        longest = max((next(batches) for _ in range(4)), key=lambda batch: batch["states"].shape[1])
        batches.close()
        assert {name: (x.shape, x.dtype) for name, x in longest.items()} == {
            name: (x.shape, x.dtype) for name, x in spec.items()
        }
        flops = stage.flops(spec)
        without = stages.make(plain)
        encoder = 16 * without._towers["speech_encoder"].flops(32_000)
        assert flops == pytest.approx(without.flops(without.batch_spec(mesh)) - encoder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim.groups": ((".*", 1.0),)}, "the speech encoder learns"),
        ({"lora.pattern": "speech_encoder/.*query$", "optim.groups": (("lora", 1.0), *FROZEN)}, "adapters too"),
        ({"speech_encoder.dropout": 0.1}, r"must be 0 .*: speech_encoder\.dropout"),
        ({"data.augment.speed": 0.1, "data.augment.gain_db": 3.0}, r"augment\.speed, data\.augment\.gain_db"),
        ({"data.augment.noise_probability": 0.1}, "noise_probability"),
        ({"data.augment.random_crop": True}, r"random_crop.*cache=auto"),
        ({"model.spec_augment.time_masks": 1}, "time_masks"),
        ({"model.spec_augment.freq_masks": 1}, "freq_masks"),
        ({"data.feature_dtype": "bfloat16"}, "'float16', 'float32'"),
    ],
)
def test_what_cannot_be_kept_is_refused(frozen, tmp_path, overrides, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        stages.make(frozen(**{"data.feature_cache": str(tmp_path), **overrides}))
    if "data.feature_dtype" not in overrides:
        stages.make(frozen(**overrides))


def test_frozen_adapters_may_be_kept(frozen, tmp_path):
    stages.make(frozen(**{"data.feature_cache": str(tmp_path), "lora.pattern": "speech_encoder/.*query$"}))


@pytest.mark.parametrize(
    ("speech", "frame_pool", "silence"),
    [
        (WhisperConfig(num_layers=2, width=32, num_heads=4, mlp_width=64), 1, 0.0),
        (WhisperConfig(num_layers=2, width=32, num_heads=4, mlp_width=64), 4, 0.2),
        (Wav2Vec2Config(num_layers=2, width=32, num_heads=4, mlp_width=64, conv_dims=(16,) * 7), 4, 0.0),
        (Wav2Vec2Config(num_layers=2, width=32, num_heads=4, mlp_width=64, conv_dims=(16,) * 7), 1, 0.1),
    ],
    ids=["whisper", "whisper_silence", "wav2vec2", "wav2vec2_silence"],
)
def test_states_say_all_that_the_waveform_says(speech, frame_pool, silence):
    """encode_states(hidden_states(x)) = encode_speech(x): 1e-5 on unit vectors, more padding or not, dropout or not."""
    cfg = DualEncoderConfig(
        speech=speech,
        text=TextEncoderConfig(num_layers=1, width=16, num_heads=2, mlp_width=16, max_positions=8),
        qformer=QFormerConfig(num_layers=2, num_queries=4, width=32, num_heads=4, mlp_width=64, dropout=0.2),
        mean_head=MeanHeadConfig(width=16, dropout=0.2),
        embed_dim=24,
        frame_pool=frame_pool,
        trailing_silence=silence,
    )
    definition = state.define(lambda rngs: DualEncoder(cfg, rngs))
    params = jax.jit(lambda key: state.initial_params(definition, key))(jax.random.key(0))
    params["layer_mix"] = np.array([0.3, -1.0, 2.0], np.float32)
    rng = np.random.default_rng(0)
    waveform = rng.integers(-3000, 3000, (3, 9000)).astype(np.int16)
    num_samples = np.array([9000, 6100, 3500], np.int32)

    @jax.jit
    def both(params, rng):
        model = definition.merge(params)
        states, frames = model.hidden_states(waveform, num_samples)
        found = model.encode_states(states, frames, rng=rng)
        padded = model.encode_states(jnp.pad(states, ((0, 0), (0, 9), (0, 0), (0, 0))), frames)
        batches = {"waveform": waveform, "num_samples": num_samples}, {"states": states, "num_frames": frames}
        means = [frozen_features.layer_means(model, batch) for batch in batches]
        return model.encode_speech(waveform, num_samples, rng=rng), states, frames, found, padded, means

    for key in (None, jax.random.key(3)):
        expected, states, frames, found, padded, means = both(params, key)
        assert states.shape == (3, cfg.num_frames(9000), 3, 32)
        assert frames.tolist() == [cfg.num_frames(int(n)) for n in num_samples]
        np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-5)
        by_hand = []
        for x, n in zip(np.asarray(states), frames, strict=True):
            parts = (x[: n - 1], x[n - 1 : n]) if silence else (x[:n],)
            by_hand.append(np.concatenate([part.mean(0, dtype=np.float64).ravel() for part in parts]))
        for mean in means:
            np.testing.assert_allclose(mean, by_hand, atol=1e-5)
        if key is None:
            np.testing.assert_allclose(padded.embedding, expected.embedding, atol=1e-5)
        else:
            assert np.abs(padded.embedding - expected.embedding).max() > 1e-3, "dropout is drawn"


def test_the_fingerprint_sees_every_weight_of_the_encoder(mesh8):
    params = {"speech_encoder/a": np.ones((4, 8), np.float32), "speech_encoder/b": np.zeros(3, np.float32)}
    first = frozen_features.fingerprint(params, mesh8)
    assert first == frozen_features.fingerprint({**params, "qformer/a": np.ones(3)}, mesh8)
    changed = params["speech_encoder/b"].copy()
    changed[1] = 1e-6
    assert first != frozen_features.fingerprint({**params, "speech_encoder/b": changed}, mesh8)
    renamed = {"speech_encoder/a": params["speech_encoder/a"], "speech_encoder/c": params["speech_encoder/b"]}
    assert first != frozen_features.fingerprint(renamed, mesh8)
