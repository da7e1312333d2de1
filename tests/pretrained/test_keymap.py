"""The language of the tables: names and shapes in both directions, prefixes, spellings, refusals."""

import numpy as np
import pytest

from mser_jax.pretrained import keymap
from mser_jax.pretrained.keymap import KeyMap, PretrainedError, Transform


@pytest.mark.parametrize("axes", [None, (1, 0, 2), (2, 0, 1), (2, 1, 0), (0, 1, 2)])
def test_transform_maps_shapes_and_slices_as_numpy_transposes(axes):
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((3, 5, 7))
    transform = Transform(axes)
    ours = theirs if axes is None else theirs.transpose(axes)
    assert transform.to_theirs(ours.shape) == theirs.shape and transform.to_ours(theirs.shape) == ours.shape
    cut = (slice(1, 3), slice(0, 2), slice(2, 3))
    part = theirs[transform.to_theirs(cut)]
    np.testing.assert_array_equal(ours[cut], part if axes is None else part.transpose(axes))
    back = ours if axes is None else ours.transpose(transform.inverse_axes)
    np.testing.assert_array_equal(back, theirs)


def test_stacks_are_a_tensor_a_layer():
    table = KeyMap("toy", ("",), (*keymap.linear("layers/fc", "h.{layer}.fc"), *keymap.embedding("tokens", "wte")))
    shapes = {"layers/fc/kernel": (2, 3, 4), "layers/fc/bias": (2, 4), "tokens/table": (9, 3)}
    assert table.tensors(shapes) == {
        "h.0.fc.weight": (4, 3),
        "h.1.fc.weight": (4, 3),
        "h.0.fc.bias": (4,),
        "h.1.fc.bias": (4,),
        "wte.weight": (9, 3),
    }


def test_short_hands_name_what_torch_names():
    assert [e.theirs for e in keymap.linear("a", "b", bias=False)] == ["b.weight"]
    kernel, bias = keymap.conv1d("a", "b")
    assert (kernel.ours, kernel.transform.to_theirs((3, 80, 512))) == ("a/kernel", (512, 80, 3))
    assert (bias.ours, bias.theirs) == ("a/bias", "b.bias")
    (scale,) = keymap.norm("n", "norm", bias=False, offset=1.0)
    assert (scale.ours, scale.theirs, scale.transform.offset) == ("n/scale", "norm.weight", 1.0)


def test_the_prefix_with_most_names_is_taken():
    table = KeyMap("toy", ("", "encoder.", "model.encoder."), keymap.linear("fc", "fc"))
    wanted = ["fc.weight", "fc.bias"]
    assert table.find_prefix(wanted, ["model.encoder.fc.weight", "model.encoder.fc.bias"]) == "model.encoder."
    assert table.find_prefix(wanted, ["fc.weight", "encoder.fc.weight", "encoder.fc.bias"]) == "encoder."
    assert table.find_prefix(wanted, ["fc.weight", "encoder.fc.weight"]) == "encoder."
    assert table.find_prefix(wanted, ["other"]) is None


def test_an_entry_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match=r"ours twice.*fc/kernel"):
        KeyMap("toy", ("",), (*keymap.linear("fc", "a"), *keymap.linear("fc", "b")))
    with pytest.raises(ValueError, match=r"theirs twice.*a\.weight"):
        KeyMap("toy", ("",), (*keymap.linear("fc", "a"), *keymap.linear("fd", "a")))


def test_refusals_are_listed_at_once():
    hf = {"act": "relu", "causal": True, "size": None}
    with pytest.raises(PretrainedError) as caught:
        keymap.refuse("toy", hf, {"act": "gelu", "causal": False, "absent": 3}, needed=["size", "depth"])
    message = str(caught.value)
    assert "act='relu' is not implemented (only 'gelu' is)" in message and "causal=True" in message
    assert "size is missing" in message and "depth is missing" in message and "absent" not in message
