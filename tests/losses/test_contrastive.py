"""The contrastive terms against float64 loops written from the formulas, on fresh random inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax.losses import contrast, infonce
from mser_jax.losses.classification import cross_entropy
from mser_jax.losses.infonce import speech_text
from mser_jax.losses.parallel import parallel
from mser_jax.losses.supcon import supcon
from mser_jax.parallel.mesh import make_mesh
from mser_jax.parallel.sharding import batch_sharding

pytestmark = pytest.mark.usefixtures("compiled_quickly")

N, D = 16, 6
SCALE = 7.0
FACTS = ("caption_id", "emotion", "language", "parallel_id", "valid")


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_batch(rng, padding=True, n=N):
    out = {
        "speech": unit(rng.normal(size=(n, D))),
        "text": unit(rng.normal(size=(n, D))),
        "caption_id": rng.integers(0, n, n).astype(np.int32),
        "emotion": rng.integers(-1, 4, n).astype(np.int32),
        "language": rng.integers(-1, 3, n).astype(np.int32),
        "parallel_id": rng.integers(-1, 3, n).astype(np.int32),
        "valid": rng.random(n) > (0.3 if padding else -1),
    }
    # One certain case of each kind: alike pairs, a parallel pair and a valid row without any positive.
    out["emotion"][:5] = [0, 0, 0, 1, -1]
    out["language"][:5] = [0, 1, 0, 0, 0]
    out["parallel_id"][:5] = [1, 1, 1, 1, -1]
    out["valid"][:5] = True
    if padding:
        out["valid"][-1] = False
    return out


def log_softmax_terms(scores, positive, candidates):
    """−Σ w log softmax / Σ w for one row, spelled out; None without positives."""
    total = sum(np.exp(scores[k]) for k in candidates)
    weights = sum(positive.values())
    if weights == 0:
        return None
    return -sum(w * np.log(np.exp(scores[p]) / total) for p, w in positive.items()) / weights


def speech_text_reference(b, positives, scale):
    rows = np.flatnonzero(b["valid"])
    s = scale * b["speech"] @ b["text"].T
    total = 0.0
    for i in rows:
        alike = [
            j
            for j in rows
            if j == i
            or b["caption_id"][i] == b["caption_id"][j]
            or (b["emotion"][i] >= 0 and b["emotion"][i] == b["emotion"][j])
        ]
        if positives == "masked":
            chosen, candidates = {i: 1.0}, [j for j in rows if j == i or j not in alike]
        else:
            chosen, candidates = dict.fromkeys(alike, 1.0), rows
        total += 0.5 * (log_softmax_terms(s[i], chosen, candidates) + log_softmax_terms(s[:, i], chosen, candidates))
    return total, len(rows)


def supcon_reference(b, temperature, cross):
    rows = [i for i in np.flatnonzero(b["valid"]) if b["emotion"][i] >= 0]
    s = b["speech"] @ b["speech"].T / temperature
    terms = []
    for i in rows:
        others = [k for k in rows if k != i]
        chosen = {}
        for p in others:
            if b["emotion"][p] == b["emotion"][i]:
                li, lp = b["language"][i], b["language"][p]
                chosen[p] = cross if li >= 0 and lp >= 0 and li != lp else 1.0
        terms.append(log_softmax_terms(s[i], chosen, others))
    terms = [t for t in terms if t is not None]
    return sum(terms), len(terms)


def parallel_reference(b, scale):
    rows = np.flatnonzero(b["valid"])
    s = scale * b["speech"] @ b["speech"].T
    terms = []
    for i in rows:
        chosen, negatives = {}, []
        for j in rows:
            if j == i:
                continue
            words = b["parallel_id"][i] == b["parallel_id"][j] >= 0
            known = min(b["emotion"][i], b["emotion"][j]) >= 0
            same_feeling = known and b["emotion"][i] == b["emotion"][j]
            if not same_feeling and (not words or known):
                negatives.append(j)
            elif (
                words
                and same_feeling
                and b["language"][i] != b["language"][j]
                and min(b["language"][i], b["language"][j]) >= 0
            ):
                chosen[j] = 1.0
        terms.append(log_softmax_terms(s[i], chosen, [*chosen, *negatives]))
    terms = [t for t in terms if t is not None]
    return sum(terms), len(terms)


def difference_quotient(loss, b, name, step=1e-5):
    """Central differences of a float64 function of the batch with respect to b[name]."""
    out = np.zeros_like(b[name])
    for index in np.ndindex(*b[name].shape):
        values = []
        for sign in (1, -1):
            moved = {**b, name: b[name].copy()}
            moved[name][index] += sign * step
            values.append(loss(moved))
        out[index] = (values[0] - values[1]) / (2 * step)
    return out


def facts(b, names):
    return {name: jnp.asarray(b[name]) for name in names}


def close(ours, expected, atol=2e-5):
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("positives", infonce.POSITIVES)
def test_speech_text_value_and_gradients(rng, positives, padding):
    b = make_batch(rng, padding)
    expected, weight = speech_text_reference(b, positives, SCALE)
    for implementation in contrast.IMPLEMENTATIONS:

        def loss(speech, text, scale, implementation=implementation):
            options = {"positives": positives, "implementation": implementation}
            total, count, _ = speech_text(
                speech, text, scale, **facts(b, ("caption_id", "emotion", "valid")), **options
            )
            return total, count

        arguments = (jnp.float32(b["speech"]), jnp.float32(b["text"]), jnp.float32(SCALE))
        (value, count), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments)
        assert count == weight
        close(value, expected, atol=1e-4)
        for name, grad in zip(("speech", "text"), grads[:2], strict=True):
            close(grad, difference_quotient(lambda x: speech_text_reference(x, positives, SCALE)[0], b, name))
            assert np.all(np.asarray(grad)[~b["valid"]] == 0)
        ends = [speech_text_reference(b, positives, SCALE + d)[0] for d in (1e-5, -1e-5)]
        close(grads[2], (ends[0] - ends[1]) / 2e-5)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("cross", [0.0, 1.0, 2.5])
def test_supcon_value_and_gradient(rng, cross, padding):
    b = make_batch(rng, padding)
    labels = facts(b, ("emotion", "language", "valid"))
    expected, weight = supcon_reference(b, 0.2, cross)
    slope = difference_quotient(lambda x: supcon_reference(x, 0.2, cross)[0], b, "speech")
    assert 0 < weight < b["valid"].sum()
    for name in contrast.IMPLEMENTATIONS:
        value, count, grad = value_and_grad(
            lambda z, name=name: supcon(z, **labels, temperature=0.2, cross_language_weight=cross, implementation=name),
            jnp.float32(b["speech"]),
        )
        assert count == weight, name
        close(value, expected, atol=1e-4)
        close(grad, slope)


@pytest.mark.parametrize("implementation", ["dense", "gathered", "ring"])
def test_parallel_does_not_push_apart_what_is_felt_alike(rng, implementation):
    """A row's gradient has no part along a row of its own emotion but those of the same words: they may be anywhere.

    Its loss is that of the float64 line, and does not change when such a row moves.
    """
    b = make_batch(rng, padding=False)
    b["emotion"] = np.array([0, 0, 0, 0, 1, 1, 2, 2, 0, 1, 0, 2, 1, 0, 2, 1], np.int32)
    b["parallel_id"] = np.array([5, 5, *range(10, 24)], np.int32)
    b["language"] = np.arange(N, dtype=np.int32) % 3
    labels = facts(b, ("parallel_id", "emotion", "language", "valid"))

    def loss(z):
        return parallel(z, **labels, logit_scale=SCALE, implementation=implementation)[0]

    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        place = lambda x: jax.device_put(x.astype(np.float32), batch_sharding(jax.sharding.get_mesh()))  # noqa: E731
        value, slope = jax.jit(jax.value_and_grad(loss))(place(b["speech"]))
    logits = SCALE * b["speech"] @ b["speech"].T
    others = np.flatnonzero(b["emotion"] != 0)
    expected = sum(
        np.log(np.exp(logits[i, j]) + np.exp(logits[i, others]).sum()) - logits[i, j] for i, j in ((0, 1), (1, 0))
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    alike = [row for row in range(2, N) if b["emotion"][row] == 0]
    np.testing.assert_array_equal(np.asarray(slope)[alike], 0)
    assert (np.abs(np.asarray(slope)[[0, 1, *others]]).max(-1) > 1e-4).all()


@pytest.mark.parametrize("padding", [False, True])
def test_parallel_value_and_gradient(rng, padding):
    b = make_batch(rng, padding)
    labels = facts(b, ("parallel_id", "emotion", "language", "valid"))
    expected, weight = parallel_reference(b, SCALE)
    slope = difference_quotient(lambda x: parallel_reference(x, SCALE)[0], b, "speech")
    assert 0 < weight < b["valid"].sum()
    for name in contrast.IMPLEMENTATIONS:
        value, count, grad = value_and_grad(
            lambda z, name=name: parallel(z, **labels, logit_scale=SCALE, implementation=name),
            jnp.float32(b["speech"]),
        )
        assert count == weight, name
        close(value, expected, atol=1e-4)
        close(grad, slope)


def test_speech_text_metrics():
    # Rows 0 and 1 share a caption, row 2 points at row 0's text, row 3 is padding.
    eye = np.eye(4, dtype=np.float32)
    speech, text = eye[[0, 1, 0, 3]], eye[[1, 0, 2, 3]]
    _, weight, metrics = speech_text(
        jnp.asarray(speech),
        jnp.asarray(text),
        10.0,
        caption_id=jnp.array([5, 5, 6, 7]),
        emotion=jnp.array([-1, -1, -1, -1]),
        valid=jnp.array([True, True, True, False]),
    )
    assert weight == 3
    # Row 0 finds text 1 and row 1 finds text 0: alike, so hits. Row 2 finds text 1: a miss.
    np.testing.assert_allclose(metrics["recall_speech_to_text"], 2 / 3, rtol=1e-6)
    # Text 0 finds speech 1, a hit; text 1 ties between speech 0 and 2, text 2 finds nothing: misses.
    np.testing.assert_allclose(metrics["recall_text_to_speech"], 1 / 3, rtol=1e-6)
    assert metrics["false_negatives"] == 2
    assert metrics["logit_scale"] == 10.0


def test_a_collapsed_encoder_scores_no_recall():
    same = jnp.ones((8, D)) / np.sqrt(D)
    ids = jnp.arange(8)
    metrics = speech_text(same, same, 5.0, caption_id=ids, emotion=ids, valid=ids >= 0)[2]
    assert metrics["recall_speech_to_text"] == metrics["recall_text_to_speech"] == 0


def all_terms(implementation, positives):
    def loss(params, b):
        sums = [
            speech_text(
                params["speech"],
                params["text"],
                params["scale"],
                caption_id=b["caption_id"],
                emotion=b["emotion"],
                valid=b["valid"],
                positives=positives,
                implementation=implementation,
            ),
            supcon(
                params["speech"],
                emotion=b["emotion"],
                language=b["language"],
                valid=b["valid"],
                temperature=1 / params["scale"],
                cross_language_weight=2.0,
                implementation=implementation,
            ),
            parallel(
                params["speech"],
                parallel_id=b["parallel_id"],
                emotion=b["emotion"],
                language=b["language"],
                valid=b["valid"],
                logit_scale=params["scale"],
                implementation=implementation,
            ),
            cross_entropy(params["speech"], b["language"], b["valid"]),
        ]
        return sum(total / jnp.maximum(weight, 1) for total, weight, _ in sums), [s[2] for s in sums]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


# (axis types, data × fsdp × tensor, positives, implementation): everything on all devices, the rest on some.
PLACES = [
    *(("explicit", (2, 4, 1), "masked", name) for name in contrast.IMPLEMENTATIONS),
    *(("auto", (2, 4, 1), "multi_positive", name) for name in contrast.IMPLEMENTATIONS),
    *(
        ("explicit", shape, "multi_positive", name)
        for name in ("gathered", "ring")
        for shape in ((1, 1, 1), (1, 2, 1), (2, 2, 1), (4, 2, 1), (2, 2, 2))
    ),
]


@pytest.mark.parametrize(("mode", "shape", "positives", "implementation"), PLACES)
def test_gradient_does_not_depend_on_the_devices(rng, mode, shape, positives, implementation):
    """Losses, metrics and gradients of all terms within 1e-5, against the whole matrix on one device."""
    b = make_batch(rng)
    params = {"speech": np.float32(b["speech"]), "text": np.float32(b["text"]), "scale": np.float32(SCALE)}
    labels = {name: b[name] for name in FACTS}
    expected = jax.device_get(all_terms("dense", positives)(params, labels))
    mesh = make_mesh(*shape, mode=mode, devices=jax.devices()[: np.prod(shape)])
    whole, split = jax.sharding.NamedSharding(mesh, jax.P()), batch_sharding(mesh)
    with jax.set_mesh(mesh):
        put = {k: jax.device_put(v, whole if k == "scale" else split) for k, v in params.items()}
        got = all_terms(implementation, positives)(put, jax.device_put(labels, split))
        assert got[1]["speech"].sharding.is_equivalent_to(split, 2) or mode == "auto"
    got = jax.device_get(got)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6), got, expected)


def test_gathered_keeps_no_square_matrix(mesh8):
    n = 64
    split = batch_sharding(mesh8)

    def loss(speech, text, ids, implementation):
        return speech_text(
            speech, text, 5.0, caption_id=ids, emotion=ids, valid=ids >= 0, implementation=implementation
        )[0]

    arguments = [jax.device_put(np.ones((n, D), np.float32), split)] * 2 + [jax.device_put(np.arange(n), split)]
    text = {
        name: jax.jit(jax.grad(loss, (0, 1)), static_argnums=3).lower(*arguments, name).compile().as_text()
        for name in ("dense", "gathered")
    }
    assert f"f32[{n},{n}]" in text["dense"]
    assert f"[{n},{n}]" not in text["gathered"]
    assert f"f32[{n // 8},{n}]" in text["gathered"]


def every_term(b):
    for positives in infonce.POSITIVES:
        for implementation in contrast.IMPLEMENTATIONS:
            yield (
                f"{positives} {implementation}",
                lambda z, p=positives, i=implementation: speech_text(
                    z,
                    z[::-1],
                    SCALE,
                    caption_id=b["caption_id"],
                    emotion=b["emotion"],
                    valid=b["valid"],
                    positives=p,
                    implementation=i,
                ),
            )
    rest = {k: b[k] for k in ("emotion", "language", "valid")}
    for implementation in contrast.IMPLEMENTATIONS:
        options = {**rest, "implementation": implementation}
        yield "supcon", lambda z, o=options: supcon(z, **o, temperature=0.1, cross_language_weight=2.0)
        yield "parallel", lambda z, o=options: parallel(z, parallel_id=b["parallel_id"], **o, logit_scale=SCALE)
    yield "cross_entropy", lambda z: cross_entropy(z, b["language"], b["valid"])


def value_and_grad(term, z):
    """(sum, weight, gradient) of a term; its metrics are finite."""

    def loss(z):
        value, *rest = term(z)
        return value, rest

    (value, (weight, metrics)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(z)
    assert all(np.isfinite(metric) for metric in metrics.values())
    return float(value), float(weight), np.asarray(grad)


def test_all_padding_is_zero_everywhere(rng):
    b = {k: jnp.asarray(v) for k, v in make_batch(rng).items()} | {"valid": jnp.zeros(N, bool)}
    for name, term in every_term(b):
        value, weight, grad = value_and_grad(term, jnp.float32(b["speech"]))
        assert value == 0 and weight == 0, name
        np.testing.assert_array_equal(grad, 0, err_msg=name)


def test_all_of_one_emotion(rng):
    b = {k: jnp.asarray(v) for k, v in make_batch(rng, padding=False).items()}
    b |= {"emotion": jnp.zeros(N, jnp.int32), "language": jnp.zeros(N, jnp.int32)}
    results = {name: value_and_grad(term, jnp.float32(b["speech"])) for name, term in every_term(b)}
    for name, (value, weight, grad) in results.items():
        assert np.isfinite(value) and np.isfinite(grad).all(), name
        # Masking leaves no negative, one language leaves no parallel positive: nothing to learn, not a NaN.
        if "masked" in name or name == "parallel":
            assert value == 0 and not grad.any(), name
            assert weight == (0 if name == "parallel" else N)
    # All columns are positives: the cross-entropy to the uniform distribution, at least its entropy.
    assert results["multi_positive dense"][0] >= N * np.log(N) - 1e-3
    assert results["supcon"][0] >= N * np.log(N - 1) - 1e-3


def test_no_positives(rng):
    b = {k: jnp.asarray(v) for k, v in make_batch(rng, padding=False).items()}
    unknown = jnp.full(N, -1)
    b |= {"emotion": unknown, "language": unknown, "parallel_id": unknown}
    for name, term in every_term(b):
        value, weight, grad = value_and_grad(term, jnp.float32(b["speech"]))
        assert np.isfinite(grad).all(), name
        if name in ("supcon", "parallel", "cross_entropy"):
            assert value == 0 and weight == 0 and not grad.any(), name


def test_bfloat16_embeddings_are_scored_in_float32(rng):
    b = make_batch(rng)
    z = jnp.asarray(b["speech"], jnp.bfloat16)
    rounded = {**b, "speech": np.asarray(z, np.float64), "text": np.asarray(z, np.float64)}
    value, _, _ = speech_text(z, z, 50.0, **facts(b, ("caption_id", "emotion", "valid")))
    assert value.dtype == jnp.float32
    close(value, speech_text_reference(rounded, "masked", 50.0)[0], atol=1e-3)


@pytest.mark.parametrize("option", [{"positives": "both"}, {"implementation": "rings"}])
def test_unknown_option(rng, option):
    b = make_batch(rng)
    with pytest.raises(ValueError, match="expected one of"):
        speech_text(b["speech"], b["text"], 1.0, **facts(b, ("caption_id", "emotion", "valid")), **option)
