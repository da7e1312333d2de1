import jax
import numpy as np
import pytest
from fake_corpora import cells, make_corpus

from mser_jax.data import device, mixture, pipeline, sources
from mser_jax.parallel import sharding


def host_batches(n, rows=16):
    rng = np.random.default_rng(0)
    for _ in range(n):
        yield {
            "waveform": rng.integers(-9, 9, (rows, 20)).astype(np.int16),
            "valid": rng.random(rows) < 0.5,
            "record": rng.integers(0, 99, rows).astype(np.int32),
        }


def test_values_order_and_sharding(mesh8):
    expected = list(host_batches(7))
    found = list(device.device_batches(iter(expected), mesh8, lookahead=2))
    assert len(found) == 7
    for host, on_device in zip(expected, found, strict=True):
        for name, value in on_device.items():
            assert value.sharding.is_equivalent_to(sharding.batch_sharding(mesh8), value.ndim)
            assert value.addressable_shards[0].data.shape[0] == 2 and value.dtype == host[name].dtype
            np.testing.assert_array_equal(jax.device_get(value), host[name])


def test_looks_no_further_ahead_than_asked(mesh8):
    taken = []

    def watched():
        for i, batch in enumerate(host_batches(10)):
            taken.append(i)
            yield batch

    found = device.device_batches(watched(), mesh8, lookahead=2)
    next(found)
    assert taken == [0, 1, 2]
    next(found)
    assert taken == [0, 1, 2, 3]


def test_refuses_a_batch_that_does_not_divide(mesh8):
    with pytest.raises(ValueError, match="multiple of 8"):
        device.to_device(next(host_batches(1, rows=12)), mesh8)


def test_from_records_to_devices(mesh8):
    table = sources.join([(make_corpus("a", cells(["en", "de"], ["sad", "angry"], 6)), 1.0)])
    options = pipeline.TrainOptions(batch_size=8, mixture=mixture.MixtureOptions(length_classes=(0.4,)))
    with pipeline.train_batches(table, options, seed=0) as batches:
        expected = [next(batches) for _ in range(3)]
    with pipeline.train_batches(table, options, seed=0) as batches:
        found = device.device_batches(batches, mesh8)
        for host in expected:
            on_device = next(found)
            assert all((jax.device_get(on_device[name]) == host[name]).all() for name in host)
