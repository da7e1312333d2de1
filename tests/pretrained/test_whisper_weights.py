"""Whisper through real files: tiny random models of every size of front end, and Whisper-base on real recordings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import torch
from towers import define, load_tower, save_random
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mser_jax import state as state_lib
from mser_jax.models import log_mel
from mser_jax.pretrained import load, whisper
from mser_jax.pretrained.keymap import PretrainedError

TINY = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "vocab_size": 60,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}


def torch_states(encoder, features):
    """Hidden states of transformers' layers on features [B, F, mels] of any length: its forward insists on 3000."""
    with torch.no_grad():
        x = torch.tensor(np.asarray(features), dtype=encoder.conv1.weight.dtype).transpose(1, 2)
        x = torch.nn.functional.gelu(encoder.conv1(x))
        x = torch.nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        states = [x]
        for layer in encoder.layers:
            x = layer(x, None)
            states.append(x)
        states[-1] = encoder.layer_norm(states[-1])
    return [state.numpy() for state in states]


def normalise(x):
    """Over the last axis, in f64."""
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def check_states(recordings, what):
    """That normalised states are transformers' as far as f32 goes; recordings: (ours, single, double) [T, D] of each.

    Whisper amplifies: a few channels of a few frames reach 500 in layers 4 and 5, and there a f32 rounding of the input
    becomes 1e-3. So the judge is transformers in f64 (double): states may deviate from it by 1e-4, or, where
    transformers in f32 (single) is itself further away, by three times what that does; the mean deviation is 3e-6 at
    most. The largest deviation is that of one number in one frame, a draw with a heavy tail, so the two are compared
    over all recordings together.
    """
    largest = {"ours": 0.0, "single": 0.0}
    for ours, single, double in recordings:
        judge = normalise(double)
        error = np.abs(normalise(ours) - judge)
        assert error.mean() <= 3e-6, (what, error.mean())
        largest["ours"] = max(largest["ours"], error.max())
        largest["single"] = max(largest["single"], np.abs(normalise(single) - judge).max())
    assert largest["ours"] <= max(1e-4, 3 * largest["single"]), (what, largest)


def our_states(encoder, features, mask):
    """[L + 1, B, T, D]."""
    return np.asarray(jax.jit(lambda x, m: encoder(x, m, collect=True).hidden_states)(features, mask))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (WhisperForConditionalGeneration, {}),
        (WhisperModel, {"num_mel_bins": 128, "encoder_layers": 2}),
        (WhisperEncoder, {"encoder_ffn_dim": 20, "encoder_attention_heads": 2}),
    ],
)
def test_tiny_models_through_files(tmp_path, model, options):
    """30 s in transformers' own forward; shorter, alone and padded, in its layers. Tolerance 1e-5, f32."""
    torch.manual_seed(0)
    theirs = save_random(model(WhisperConfig(**{**TINY, **options})), tmp_path)
    theirs = theirs if model is WhisperEncoder else theirs.get_encoder()
    ours = load_tower(tmp_path, "speech")
    mels = ours.cfg.num_mels
    assert mels == options.get("num_mel_bins", 80)
    rng = np.random.default_rng(0)

    x = rng.standard_normal((2, 3000, mels)).astype(np.float32)
    with torch.no_grad():
        reference = theirs(torch.from_numpy(x.transpose(0, 2, 1)), output_hidden_states=True).hidden_states
    states = our_states(ours, x, np.ones((2, 3000), bool))
    assert len(reference) == len(states)
    for i, state in enumerate(reference):
        np.testing.assert_allclose(states[i], state.numpy(), atol=1e-5, rtol=0, err_msg=f"hidden state {i}")

    lengths = (400, 137, 2, 1)
    batch = rng.standard_normal((4, 400, mels)).astype(np.float32)
    mask = np.arange(400)[None] < np.array(lengths)[:, None]
    together = our_states(ours, batch, mask)
    for row, length in enumerate(lengths):
        expected = torch_states(theirs, batch[row : row + 1, :length])
        frames = -(-length // 2)
        for i, state in enumerate(expected):
            np.testing.assert_allclose(together[i, row, :frames], state[0], atol=1e-5, rtol=0, err_msg=f"{i} {length}")


def test_positions_are_those_of_the_file_and_learn_nothing(tmp_path):
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(**TINY))
    with torch.no_grad():
        model.encoder.embed_positions.weight.mul_(0.5)
    save_random(model, tmp_path)
    family, cfg, definition = define(tmp_path, "speech")
    params = load.load(tmp_path, family.key_map(cfg), definition.abstract)
    np.testing.assert_array_equal(params["positions"], model.encoder.embed_positions.weight.detach())

    def loss(params):
        return jnp.sum(definition.merge(params)(jnp.ones((1, 60, 80)), jnp.ones((1, 60), bool)).last[:, :, :5] ** 2)

    gradients = jax.grad(loss)(params)
    assert not np.any(gradients["positions"]) and np.any(gradients["conv2/kernel"])


def test_positions_that_are_not_computed_ones_are_refused_where_ours_computes(tmp_path):
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(**TINY))
    with torch.no_grad():
        model.encoder.embed_positions.weight[7] += 0.01
    save_random(model, tmp_path)
    cfg = whisper.WhisperConfig(num_layers=3, width=32, num_heads=4, mlp_width=48)
    abstract = state_lib.define(lambda rngs: cfg.make(dtype=np.float32, rngs=rngs)).abstract
    with pytest.raises(PretrainedError, match=r"not what is computed here \(1\):\n  encoder.embed_positions.weight"):
        load.load(tmp_path, whisper.key_map(cfg), abstract)


@pytest.mark.parametrize(
    ("key", "value"), [("activation_function", "relu"), ("max_source_positions", 750), ("d_model", None)]
)
def test_what_is_not_implemented_is_refused(key, value):
    hf = {**WhisperConfig(**TINY).to_dict(), key: value}
    with pytest.raises(PretrainedError, match=key):
        whisper.config_from_hf(hf)


@pytest.mark.parametrize("size", ["tiny", "base", "small", "medium", "large", "large-v3"])
def test_all_sizes_have_a_table_that_transformers_agrees_with(size):
    """Names and shapes of the whole encoder, without making it."""
    layers, width, mels = {
        "tiny": (4, 384, 80),
        "base": (6, 512, 80),
        "small": (12, 768, 80),
        "medium": (24, 1024, 80),
        "large": (32, 1280, 80),
        "large-v3": (32, 1280, 128),
    }[size]
    sizes = {"encoder_layers": layers, "d_model": width, "num_mel_bins": mels, "encoder_ffn_dim": 4 * width}
    hf = WhisperConfig(**sizes, encoder_attention_heads=width // 64)
    with torch.device("meta"):
        theirs = {name: tuple(p.shape) for name, p in WhisperEncoder(hf).state_dict().items()}
    cfg = whisper.config_from_hf(hf.to_dict())
    definition = state_lib.define(lambda rngs: cfg.make(dtype=np.float32, rngs=rngs))
    table = whisper.key_map(cfg)
    assert {entry.ours for entry in table.entries} == set(definition.abstract)
    assert table.tensors({path: leaf.shape for path, leaf in definition.abstract.items()}) == theirs


@pytest.fixture(scope="module")
def recordings(shared):
    """One real recording for each language, int16 at 16 kHz."""
    rows = [json.loads(line) for line in (shared / "speech" / "manifest.jsonl").read_text().splitlines()]
    first = {}
    for row in rows:
        first.setdefault(row["language"], row["path"])
    assert len(first) == 6
    waves = {lang: soundfile.read(shared / "speech" / path, dtype="int16") for lang, path in first.items()}
    assert all(rate == 16000 for _, rate in waves.values())
    return {lang: wave for lang, (wave, _) in waves.items()}


@pytest.fixture(scope="module")
def base(weights):
    """(ours, transformers' in f32, transformers' in f64) with the weights of Whisper-base."""
    directory = weights / "whisper-base"
    theirs = [
        WhisperModel.from_pretrained(directory, dtype=dtype).encoder.eval() for dtype in (torch.float32, torch.float64)
    ]
    return load_tower(directory, "speech"), *theirs


def test_whisper_base_on_real_recordings_of_30_s(base, recordings):
    """Every layer, identical to transformers as far as f32 goes (check_states)."""
    ours, single, double = base
    wave = recordings["de"]
    padded = np.pad(wave, (0, 480_000 - len(wave)))[None]
    extracted = WhisperFeatureExtractor()(wave / 32768, sampling_rate=16_000, return_tensors="np")
    features = extracted.input_features.transpose(0, 2, 1)
    mel, mask = ours.front_end(jnp.asarray(padded), jnp.full(1, 480_000))
    assert mask.all()
    np.testing.assert_allclose(mel, features, atol=5e-5, rtol=0)

    states = our_states(ours, features, mask)
    with torch.no_grad():
        inputs = torch.from_numpy(features.transpose(0, 2, 1))
        exact = double(inputs.double(), output_hidden_states=True).hidden_states
        rounded = single(inputs, output_hidden_states=True).hidden_states
    assert len(states) == len(exact) == 7
    for i, (our, judge, their) in enumerate(zip(states, exact, rounded, strict=True)):
        check_states([(our, their, judge)], f"layer {i}")


def test_whisper_base_on_short_recordings_runs_on_the_speech_alone(base, recordings):
    """What we do differently: no padding to 30 s. A short recording costs what its frames cost, and its states are
    those of transformers' layers on these frames alone; the log-mel features of valid frames are those of the
    padded 30 s.
    """
    ours, single, double = base
    longest = max(len(wave) for wave in recordings.values())
    batch = np.stack([np.pad(wave, (0, longest - len(wave))) for wave in recordings.values()])
    lengths = [len(wave) for wave in recordings.values()]
    mel, mask = ours.front_end(jnp.asarray(batch), jnp.asarray(lengths))
    states = our_states(ours, mel, mask)
    extractor = WhisperFeatureExtractor()
    by_layer = [[] for _ in states]
    for row, (lang, wave) in enumerate(recordings.items()):
        frames = -(-len(wave) // log_mel.HOP)
        padded = extractor(wave / 32768, sampling_rate=16_000, return_tensors="np").input_features[0].T[:frames]
        np.testing.assert_allclose(mel[row, :frames], padded, atol=5e-5, rtol=0, err_msg=lang)
        features = mel[row : row + 1, :frames]
        pairs = zip(torch_states(single, features), torch_states(double, features), strict=True)
        for i, (their, judge) in enumerate(pairs):
            by_layer[i].append((states[i, row, : -(-frames // 2)], their[0], judge[0]))
    for i, found in enumerate(by_layer):
        check_states(found, f"layer {i}")
