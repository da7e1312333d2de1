"""Programs as text → collectives, multiply-adds and traffic: a short TPU program by hand, and one of this CPU."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax.telemetry import hlo, hlo_text

TPU_FILE = pathlib.Path(__file__).parent / "data" / "step.hlo.txt"
TPU = TPU_FILE.read_text()


def test_collectives_of_a_tpu_program():
    """One asynchronous gather a turn of a loop of three, though it shows in three fusions; a fused reduce-scatter."""
    found = {one.kind: one for one in hlo.Module(TPU).collectives()}
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"}
    gather, scatter, reduce = (found[kind] for kind in ("all-gather", "reduce-scatter", "all-reduce"))
    assert (gather.count, gather.bytes, gather.asynchronous) == (3, 256 * 256 * 2, True)
    assert (scatter.count, scatter.bytes, scatter.asynchronous) == (1, 256 * 256 * 2, False)
    assert (reduce.count, reduce.bytes, reduce.asynchronous) == (1, 64 * 256 * 2, False)
    # Devices 0 … 7 as 2 × 4: gathered along rows, added up along columns.
    assert gather.group == scatter.group == (0, 1, 2, 3) and reduce.group == (0, 4)
    assert gather.wire_bytes == 3 * gather.bytes * 3 / 4 and reduce.wire_bytes == reduce.bytes


def test_a_transfer_between_slices_is_a_collective():
    text = """HloModule jit_f, is_scheduled=true

ENTRY %main (a: f32[48,8,128]) -> f32[48,8,128] {
  %a = f32[48,8,128]{2,1,0:T(8,128)} parameter(0)
  %after-all.1 = token[] after-all()
  %send.1 = (f32[48,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%a, %after-all.1), channel_id=6, MEGASCALE
  ROOT %copy.1 = f32[48,8,128]{2,1,0:T(8,128)} copy(%a)
}
"""
    attributes = 'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    module = hlo.Module(text.replace("MEGASCALE", attributes))
    [reduce] = module.collectives()
    assert (reduce.kind, reduce.bytes, reduce.between_slices) == ("all-reduce", 48 * 8 * 128 * 4, True)
    assert [one.name for one in module.work()] == ["copy.1"]


def test_work_of_a_tpu_program():
    work = {one.name: one for one in hlo.Module(TPU).work()}
    product = work["fusion.1"]
    assert (product.flops, product.count) == (2 * 16 * 256 * 256, 3)
    # Its kernel, and its result; x lies on the chip, the gather's buffers are not its own.
    assert product.bytes == 256 * 256 * 2 + 16 * 256 * 2
    # A slice of the stack is read, not the stack; an update writes what it updates.
    assert work["dynamic-slice_convert_fusion.1"].bytes == 64 * 256 * (4 + 2)
    assert work["dynamic-update-slice_fusion.1"].bytes == 16 * 256 * 2 * 2
    assert work["async-collective-done.1"].flops == work["async-collective-done.1"].bytes == 0


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, x", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c','b'}, x", (0, 4)),
        ("source_target_pairs={{3,4},{4,5}}, x", (3, 4)),
        ("replica_groups={}, x", ()),
    ],
)
def test_groups(text, group):
    assert hlo_text.group_of(text) == group


def test_convolutions_count_what_meets():
    """A dense one, a batched product in a TPU's spelling (8 × 20 of [225, 64] · [64, 225]), and a padded stride."""
    dense = hlo_text.convolution_flops(
        (8, 100, 16), (1, 16, 32), (8, 100, 32), "window={size=1}, dim_labels=b0f_0io->b0f"
    )
    assert dense == 2 * 8 * 100 * 16 * 32
    batched = "window={size=8x20 stride=7x19 lhs_dilate=8x20}, dim_labels=0b1f_0o1i->01bf"
    flops = hlo_text.convolution_flops((8, 225, 20, 64), (8, 225, 20, 64), (8, 20, 225, 225), batched)
    assert flops == 2 * 8 * 20 * 225 * 225 * 64
    padded = hlo_text.convolution_flops(
        (1, 5, 1), (3, 1, 1), (1, 5, 1), "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    )
    assert padded == 2 * 13  # 5 × 3 less the two that meet a zero


def test_flops_of_a_scan_and_its_gradient(mesh8):
    """Products of four layers, forward, recomputed and twice backward, as this CPU's compiler writes them."""

    def loss(w, x):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), policy=jax.checkpoint_policies.nothing_saveable)
        return jax.lax.scan(body, x, w)[0].sum()

    w = jax.ShapeDtypeStruct((4, 64, 64), "float32", sharding=NamedSharding(mesh8, P()))
    x = jax.ShapeDtypeStruct((32, 64), "float32", sharding=NamedSharding(mesh8, P(("data", "fsdp"))))
    module = hlo.Module(jax.jit(jax.grad(loss)).lower(w, x).compile().as_text())
    assert sum(one.flops * one.count for one in module.work()) == 4 * 4 * 2 * (32 / 8) * 64 * 64
    [reduce] = [one for one in module.collectives() if one.bytes >= 64 * 64 * 4]
    assert reduce.kind == "all-reduce" and len(reduce.group) in (0, 8)


def test_a_product_of_cublas():
    """As XLA writes one for a GPU: its workspace is a second result."""
    text = (TPU_FILE.parent / "gemm.hlo.txt").read_text()
    [product] = hlo.Module(text).work()
    assert product.flops == 2 * 8 * 128 * 64 * 32


def test_a_text_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.Module("HloModule nothing")


def test_largest_arrays():
    first, *_ = hlo.largest(hlo.Module(TPU))
    assert first.bytes == max(
        int(np.prod(list(map(int, d.split(",")))) * 2) for d in re.findall(r"bf16\[([\d,]+)\]", TPU)
    )
