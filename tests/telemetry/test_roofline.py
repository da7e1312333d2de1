"""Times from peaks, worked out by hand on a made-up torus."""

import dataclasses
import types

import numpy as np
import pytest

from mser_jax.telemetry import roofline
from mser_jax.telemetry.hlo import Collective, Work

CHIP = dataclasses.replace(
    roofline.chips()["v5p"], flops=100.0, hbm_bandwidth=10.0, link_bandwidth=2.0, dcn_bandwidth=0.5, ring=4
)


def torus(slices=1):
    """4 × 4 × 2 chips a slice: rings along the first two dimensions, a line along the third."""
    places = [(s, x, y, z) for s in range(slices) for x in range(4) for y in range(4) for z in range(2)]
    return [types.SimpleNamespace(coords=list(place[1:]), slice_index=place[0]) for place in places]


def collective(kind, group, size=16, count=1, asynchronous=False):
    return Collective(kind, size, count, tuple(group), asynchronous, "")


@pytest.mark.parametrize(
    ("kind", "group", "seconds"),
    [
        ("all-gather", range(0, 32, 8), 16 * 3 / 4 / (2 * 2.0)),  # a ring of 4: two links
        ("all-gather", (0, 1), 16 * 1 / 2 / 2.0),  # a line: one
        ("reduce-scatter", range(0, 32, 2), 16 * 15 / 16 / (2 * 2.0)),  # a ring through a plane
        ("all-reduce", range(0, 32, 2), 2 * 16 * 15 / 16 / (4 * 2.0)),  # both dimensions at once
        ("collective-permute", (0, 8), 16 / 2.0),
    ],
)
def test_time_within_a_slice(kind, group, seconds):
    ici, dcn = roofline.seconds(collective(kind, group), torus(), CHIP)
    assert (ici, dcn) == (pytest.approx(seconds), 0.0)


def test_between_slices_goes_what_each_chip_holds():
    """An all-reduce over 2 slices of 32: each chip sends its 32nd once over and once back (× 1/2)."""
    ici, dcn = roofline.seconds(collective("all-reduce", range(64)), torus(2), CHIP)
    assert dcn == pytest.approx(2 * 1 / 2 * 16 / 32 / 0.5)
    assert ici == pytest.approx(2 * 16 * 31 / 32 / ((2 + 2 + 1) * 2.0))
    ici, dcn = roofline.seconds(collective("all-reduce", (0, 32)), torus(2), CHIP)
    assert (ici, dcn) == (0.0, pytest.approx(16 / 0.5))


def test_what_hosts_exchange_is_on_the_network_only():
    devices = np.array(torus(2), dtype=object).reshape(16, 4, 1)
    mesh = types.SimpleNamespace(devices=devices, size=64, shape={"data": 16, "fsdp": 4, "tensor": 1})
    one = Collective("all-reduce", 16, 1, (), True, "", between_slices=True)
    [row] = roofline.predict([Work("a", "copy", 0.0, 1, 1, "")], [one], mesh, CHIP).transfers
    assert (row.axes, row.ici_seconds, row.dcn_seconds) == ("data", 0.0, pytest.approx(2 * 1 / 2 * 16 / 0.5))


def test_axes_of_a_group():
    shape = {"data": 2, "fsdp": 4, "tensor": 1}
    assert [roofline.axes_of(g, shape) for g in ((0, 1, 2, 3), (0, 4), range(8))] == ["fsdp", "data", "data+fsdp"]


def test_a_step_takes_the_longer_of_each_operation_and_what_is_not_hidden():
    devices = np.array(torus(), dtype=object).reshape(8, 4, 1)
    mesh = types.SimpleNamespace(devices=devices, size=32, shape={"data": 8, "fsdp": 4, "tensor": 1})
    work = [Work("a", "fusion", flops=200.0, bytes=5, count=3, op_name=""), Work("b", "copy", 0.0, 20, 1, "")]
    moves = [
        collective("all-gather", range(0, 32, 8), asynchronous=True),
        collective("all-reduce", (0, 1), count=2),
    ]
    found = roofline.predict(work, moves, mesh, CHIP)
    assert (found.compute, found.hbm, found.operations) == (6.0, 3.5, 8.0)
    exposed = 2 * (2 * 16 * 1 / 2 / 2.0)
    assert found.exposed == pytest.approx(exposed) and found.ici == pytest.approx(exposed + 3.0)
    assert found.step == pytest.approx(8.0 + exposed) and found.bound == "ICI"
    slow = [dataclasses.replace(moves[0], count=100)]
    assert roofline.predict(work, slow, mesh, CHIP).step == pytest.approx(300.0)


def test_a_device_of_two_has_half():
    chip = roofline.chips()["tpu7x"]
    assert chip.device.flops == chip.flops / 2 and chip.device.hbm_bytes == chip.hbm_bytes / 2
    for one in roofline.chips().values():
        assert one.source.startswith("https://")
