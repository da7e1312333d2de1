"""The ring beside the whole matrix: tiles, what it compiles to, when it is chosen. See also test_contrastive.py."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax.losses import contrast, ring
from mser_jax.losses.infonce import speech_text
from mser_jax.losses.parallel import parallel
from mser_jax.losses.supcon import supcon
from mser_jax.parallel.sharding import batch_sharding

N, D = 64, 6


@pytest.fixture
def batch(mesh8):
    """Random unit embeddings and labels on eight devices; about one row in five is padding."""
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, N, D)).astype(np.float32)
    labels = {name: rng.integers(-1, 5, N).astype(np.int32) for name in ("caption_id", "emotion", "language")}
    rows = dict(zip(("speech", "text"), x / np.linalg.norm(x, axis=-1, keepdims=True), strict=True)) | labels
    rows |= {"parallel_id": rng.integers(-1, 6, N).astype(np.int32), "valid": rng.random(N) > 0.2}
    return jax.device_put(rows, batch_sharding(mesh8))


def all_terms(implementation, dtype=jnp.float32):
    """A jitted (speech, text, scale, batch) -> ((loss, all metrics), gradients) of the three terms together."""

    def loss(speech, text, scale, b):
        speech, text = speech.astype(dtype), text.astype(dtype)
        facts = {name: b[name] for name in ("emotion", "valid")}
        language = b["language"]
        terms = [
            speech_text(
                speech, text, scale, caption_id=b["caption_id"], **facts, positives="multi_positive",
                implementation=implementation,
            ),
            supcon(
                speech, language=language, **facts, temperature=0.1, cross_language_weight=2.0,
                implementation=implementation,
            ),
            parallel(
                speech, parallel_id=b["parallel_id"], language=language, **facts, logit_scale=scale,
                implementation=implementation,
            ),
        ]  # fmt: skip
        return sum(total / weight for total, weight, _ in terms), [(term[1], term[2]) for term in terms]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def run(implementation, batch, dtype=jnp.float32):
    out = all_terms(implementation, dtype)(batch["speech"], batch["text"], jnp.float32(9.0), batch)
    return jax.device_get(out)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_tiles_equal_the_whole_matrix(batch, monkeypatch, dtype, tolerance):
    """Blocks of 8 × 8 in tiles of 2 × 2. bfloat16 embeddings have gradients of bfloat16: 8 bits."""
    monkeypatch.setattr(ring, "MAX_TILE", 2)
    got, expected = run("ring", batch, dtype), run("dense", batch, dtype)
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got[0][1], expected[0][1])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max()),
        got[1], expected[1],
    )  # fmt: skip


def test_nothing_is_gathered(batch):
    """Of loss and gradients of all terms: no all-gather, no row of the matrix; the loop does not grow with the ring."""
    scale = jnp.float32(9.0)
    text = {
        name: all_terms(name).lower(batch["speech"], batch["text"], scale, batch).compile().as_text()
        for name in ("gathered", "ring")
    }
    assert "all-gather" in text["gathered"] and f"[{N // 8},{N}]" in text["gathered"], "what is looked for is found"
    assert "all-gather" not in text["ring"] and "all-to-all" not in text["ring"]
    assert "collective-permute" in text["ring"]
    shapes = re.findall(r"\[([\d,]+)\]", text["ring"])
    assert max(np.prod(list(map(int, shape.split(",")))) for shape in shapes) < (N // 8) * N
    # Three terms, two passes, five arrays at most; unrolled it would be eight times as many.
    assert len(re.findall(r"collective-permute(-start)?\(", text["ring"])) <= 3 * 2 * 5, "hops are in a loop"


def test_large_batches_take_the_ring(batch, monkeypatch):
    def hops():
        lowered = all_terms("auto").lower(batch["speech"], batch["text"], jnp.float32(9.0), batch)
        return lowered.as_text().count("collective_permute")

    assert hops() == 0
    monkeypatch.setattr(contrast, "RING_FROM", N)
    assert hops() > 0


@pytest.mark.parametrize(
    ("rows", "tile"), [(1, 1), (48, 48), (1024, 1024), (4096, 1024), (1250, 625), (2 * 1031, 1031), (1031, 1031)]
)
def test_tiles_divide_and_are_not_tiny(rows, tile):
    assert ring.tile_size(rows) == tile


def test_rows_must_divide(batch):
    with pytest.raises(ValueError, match="divi"):
        run("ring", jax.tree.map(lambda x: np.asarray(x)[:-1], batch))
