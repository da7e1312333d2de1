"""SpecAugment: what it hides, where, how much of it."""

import jax
import numpy as np

from mser_jax.models.spec_augment import SpecAugmentConfig, spec_augment


def example(batch=64, frames=50, mels=40):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, frames + 1, batch)
    mask = np.arange(frames)[None] < lengths[:, None]
    return np.where(mask[..., None], rng.standard_normal((batch, frames, mels)) - 3, 0).astype(np.float32), mask


def test_off_is_the_identity():
    features, mask = example()
    for cfg in (
        SpecAugmentConfig(),
        SpecAugmentConfig(time_masks=2, time_width=0, freq_masks=2, freq_width=0),
    ):
        np.testing.assert_array_equal(spec_augment(features, mask, jax.random.key(0), cfg), features)


def test_off_leaves_waveforms_alone():
    """Encoders without log-mel features have [B, S] ones."""
    wave, mask = np.ones((3, 40), np.float32), np.ones((3, 40), bool)
    out = spec_augment(wave, mask, jax.random.key(0), SpecAugmentConfig(time_masks=2, time_width=0))
    np.testing.assert_array_equal(out, wave)


def test_time_bands_are_runs_within_the_valid_frames():
    features, mask = example()
    cfg = SpecAugmentConfig(time_masks=1, time_width=6, max_time_share=0.5)
    changed = np.asarray(spec_augment(features, mask, jax.random.key(1), cfg) != features)
    assert not changed[~mask].any()
    rows = changed.all(-1)
    np.testing.assert_array_equal(rows, changed.any(-1))  # whole frames
    widths = rows.sum(1)
    assert np.all(widths <= np.minimum(6, mask.sum(1) // 2))
    assert len(np.unique(widths)) > 3 and len(np.unique(rows.argmax(1))) > 10
    assert np.all(np.abs(np.diff(rows.astype(int), axis=1, prepend=0, append=0)).sum(1) <= 2)  # one run


def test_frequency_bands_and_the_value_put_there():
    features, mask = example()
    out = np.asarray(spec_augment(features, mask, jax.random.key(2), SpecAugmentConfig(freq_masks=2, freq_width=9)))
    changed = out != features
    assert not changed[~mask].any()
    bins = changed.any(1)
    for i in range(len(features)):
        np.testing.assert_array_equal(changed[i][mask[i]], np.broadcast_to(bins[i], (mask[i].sum(), 40)))
        np.testing.assert_allclose(out[i][changed[i]], features[i][mask[i]].mean(), rtol=1e-5)
    assert bins.sum(1).max() > 9 and bins.sum(1).max() <= 18  # two bands somewhere, never more


def test_width_and_start_are_uniform():
    """Mean width of one band of 0 … 9 bins is 4.5; each start is as likely as the paper has it."""
    features, mask = np.ones((4000, 1, 20), np.float32), np.ones((4000, 1), bool)
    features[:, :, ::2] = 2  # so that the mean shows
    cfg = SpecAugmentConfig(freq_masks=1, freq_width=9)
    hidden = np.asarray(spec_augment(features, mask, jax.random.key(3), cfg) != features)[:, 0]
    widths = hidden.sum(1)
    counts = np.bincount(widths, minlength=10)
    assert len(counts) == 10 and counts.min() > 300 and counts.max() < 500
    starts = hidden[widths == 5].argmax(1)
    counts = np.bincount(starts, minlength=16)
    assert len(counts) == 16 and counts.min() > 8
