"""Directories → sharded arrays: any sharding, dtype and number of files; and everything that may be wrong with them."""

import dataclasses
import json
import os
import shutil
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file
from towers import abstract_on, define
from transformers import BertConfig, BertModel

from mser_jax.pretrained import files, keymap, load
from mser_jax.pretrained.keymap import KeyMap, PretrainedError

# The second conv of the toy has `offset`, the linear is stacked, the table is not.
TABLE = KeyMap(
    family="toy tower",
    prefixes=("", "net."),
    entries=(
        *keymap.conv1d("conv", "conv"),
        *keymap.linear("layers/fc", "h.{layer}.fc"),
        *keymap.norm("layers/norm", "h.{layer}.norm", bias=False, offset=1.0),
        *keymap.embedding("tokens", "wte"),
    ),
    ignored=(r"^head\.",),
    renames=((r"norm\.gamma$", "norm.weight"),),
)
SHAPES = {
    "conv/kernel": (3, 8, 16),
    "conv/bias": (16,),
    "layers/fc/kernel": (4, 8, 24),
    "layers/fc/bias": (4, 24),
    "layers/norm/scale": (4, 8),
    "tokens/table": (40, 8),
}


def random_files(directory, prefix="", dtype=np.float32):
    """A model.safetensors for TABLE, and what ours should be, by numpy."""
    rng = np.random.default_rng(0)
    theirs = {
        name: rng.standard_normal(shape).astype(dtype)
        for name, shape in {**TABLE.tensors(SHAPES), "head.weight": (5, 8)}.items()
    }
    directory.mkdir(exist_ok=True)
    save_file(
        {name if name.startswith("head") else prefix + name: v for name, v in theirs.items()}, directory / files.WEIGHTS
    )
    layers = range(4)
    f32 = {name: value.astype(np.float32) for name, value in theirs.items()}
    return theirs, {
        "conv/kernel": f32["conv.weight"].transpose(2, 1, 0),
        "conv/bias": f32["conv.bias"],
        "layers/fc/kernel": np.stack([f32[f"h.{i}.fc.weight"].T for i in layers]),
        "layers/fc/bias": np.stack([f32[f"h.{i}.fc.bias"] for i in layers]),
        "layers/norm/scale": np.stack([f32[f"h.{i}.norm.weight"] + 1 for i in layers]),
        "tokens/table": f32["wte.weight"],
    }


def abstract(dtype=jnp.float32, shapes=SHAPES):
    return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_float_dtype_loads_as_numpy_reads_it(tmp_path, prefix, stored):
    _, expected = random_files(tmp_path, prefix, stored)
    out = load.load(tmp_path, TABLE, abstract())
    assert list(out) == list(SHAPES)
    for path, value in out.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    for path, value in load.load(tmp_path, TABLE, abstract(jnp.bfloat16)).items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, expected[path].astype(ml_dtypes.bfloat16), err_msg=path)


# Each axis of each parameter is cut by one spec at least, the layers too; None is a replica on all eight.
SPECS = [
    {
        "conv/kernel": P(None, "fsdp", "data"),
        "conv/bias": P(("data", "fsdp")),
        "layers/fc/kernel": P(None, None, ("data", "fsdp")),
        "layers/fc/bias": P("data", "fsdp"),
        "layers/norm/scale": P("fsdp"),
        "tokens/table": P(("fsdp", "data")),
    },
    {
        "conv/kernel": P(None, ("data", "fsdp")),
        "conv/bias": P(),
        "layers/fc/kernel": P("fsdp", "data"),
        "layers/fc/bias": P("fsdp"),
        "layers/norm/scale": P(None, "fsdp"),
        "tokens/table": P(None, "data"),
    },
]


@pytest.mark.parametrize("specs", SPECS)
def test_any_sharding_holds_the_same_numbers(tmp_path, mesh8, specs, monkeypatch):
    _, expected = random_files(tmp_path)
    monkeypatch.setattr(load, "_READ_BYTES", 300)  # every tensor in several turns, cut across shards
    wanted = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh8, specs[path]))
        for path, shape in SHAPES.items()
    }
    # Shards are made where they stay; only replicas are copied, and that is asked for.
    with jax.transfer_guard_device_to_device("disallow"):
        loaded = load.load(tmp_path, TABLE, wanted)
    for path, value in loaded.items():
        assert value.sharding == wanted[path].sharding, path
        assert len(value.addressable_shards) == 8
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[path][shard.index], err_msg=path)


def test_only_rows_that_the_devices_hold_are_read(tmp_path, monkeypatch):
    """A process with one of eight shards reads an eighth of the table: what several processes rely on."""
    _, expected = random_files(tmp_path)
    read = []
    monkeypatch.setattr(load.files, "read", lambda info, a, b, real=files.read: read.append((a, b)) or real(info, a, b))
    entry = TABLE.entries[-1]
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    class OneDevice:
        """A sharding of which this process holds the sixth part only."""

        def addressable_devices_indices_map(self, shape):
            indices = NamedSharding(mesh, P("fsdp")).devices_indices_map(shape)
            return dict(list(indices.items())[5:6])

    shards = {}
    monkeypatch.setattr(
        load.jax,
        "make_array_from_single_device_arrays",
        lambda shape, sharding, copies: shards.update(enumerate(copies)),
    )
    leaf = type("Leaf", (), {"shape": (40, 8), "dtype": jnp.float32, "sharding": OneDevice()})
    load._assemble(entry, load.match(tmp_path, TABLE, SHAPES)[1], leaf)
    assert read == [(25, 30)] and len(shards) == 1
    np.testing.assert_array_equal(shards[0], expected["tokens/table"][25:30])


def test_older_spellings_are_read(tmp_path):
    theirs, expected = random_files(tmp_path)
    save_file({name.replace("norm.weight", "norm.gamma"): v for name, v in theirs.items()}, tmp_path / files.WEIGHTS)
    out = load.load(tmp_path, TABLE, abstract())
    np.testing.assert_array_equal(out["layers/norm/scale"], expected["layers/norm/scale"])


def split_in_two(directory):
    """model.safetensors as two shards with an index."""
    whole = load_file(directory / files.WEIGHTS)
    (directory / files.WEIGHTS).unlink()
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (directory / files.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_one_model(tmp_path):
    _, expected = random_files(tmp_path)
    split_in_two(tmp_path)
    for path, value in load.load(tmp_path, TABLE, abstract()).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_a_missing_shard_is_named(tmp_path):
    random_files(tmp_path)
    split_in_two(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"not there: \['model-00002-of-00002.safetensors'\]"):
        load.load(tmp_path, TABLE, abstract())


def test_shards_of_two_models_are_named(tmp_path):
    """Whole files with other tensors in them than their index says: one of them is of another download."""
    theirs, _ = random_files(tmp_path)
    split_in_two(tmp_path)
    index = json.loads((tmp_path / files.INDEX).read_text())
    for change in (lambda told: told.pop("wte.weight"), lambda told: told.update({"h.9.fc.bias": max(told.values())})):
        told = dict(index["weight_map"])
        change(told)
        (tmp_path / files.INDEX).write_text(json.dumps({"weight_map": told}))
        with pytest.raises(PretrainedError, match=r"are not of one model: .*\(1 tensors differ\)"):
            load.load(tmp_path, TABLE, abstract())
    file = max(index["weight_map"].values())
    (tmp_path / files.INDEX).write_text(json.dumps(index))
    save_file({"another.weight": theirs["conv.bias"]}, tmp_path / file)
    with pytest.raises(PretrainedError, match=rf"puts another.weight into no file, and it is in {file} \(9 "):
        load.load(tmp_path, TABLE, abstract())


@pytest.mark.parametrize(
    ("value", "stored"), [(np.nan, np.float32), (np.inf, np.float16), (np.nan, ml_dtypes.bfloat16)]
)
def test_values_that_are_no_numbers_are_named(tmp_path, value, stored):
    theirs, _ = random_files(tmp_path, dtype=stored)
    theirs["h.2.fc.weight"][5, 3] = theirs["h.2.fc.weight"][6, 0] = value
    save_file(theirs, tmp_path / files.WEIGHTS)
    with pytest.raises(PretrainedError, match=r"model\.safetensors: 2 values of h\.2\.fc\.weight are NaN or infinite"):
        load.load(tmp_path, TABLE, abstract())
    theirs["h.2.fc.weight"][5, 3] = theirs["h.2.fc.weight"][6, 0] = 1
    theirs["head.weight"][0, 0] = value  # not read
    save_file(theirs, tmp_path / files.WEIGHTS)
    load.load(tmp_path, TABLE, abstract())


@pytest.mark.parametrize(("stored", "big"), [(ml_dtypes.bfloat16, 1e9), (np.float32, -7e4)])
def test_values_beyond_the_dtype_are_named(tmp_path, stored, big):
    theirs, _ = random_files(tmp_path, dtype=stored)
    theirs["wte.weight"][39, 7] = big
    save_file(theirs, tmp_path / files.WEIGHTS)
    with pytest.raises(PretrainedError, match=r"1 values of wte\.weight \(.*\) are beyond float16"):
        load.load(tmp_path, TABLE, abstract(jnp.float16))
    load.load(tmp_path, TABLE, abstract(jnp.bfloat16))


def put_adapter(directory, **config):
    directory.mkdir(exist_ok=True)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "someone/base", **config}
    (directory / "adapter_config.json").write_text(json.dumps(said))
    save_file({"base_model.model.h.0.fc.lora_A.weight": np.ones((2, 8), np.float32)}, directory / files.ADAPTERS[1])


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("names", [files.ADAPTERS[:1], files.ADAPTERS[1:2], files.ADAPTERS[:2]])
def test_an_adapter_beside_weights_or_alone_is_no_plain_model(tmp_path, beside, names):
    """transformers would apply it: neither import nor export passes over it."""
    if beside:
        random_files(tmp_path)
        (tmp_path / files.CONFIG).write_text('{"model_type": "llama"}')
    put_adapter(tmp_path)
    for name in files.ADAPTERS:
        if name not in names:
            (tmp_path / name).unlink(missing_ok=True)
    of = "someone/base" if files.ADAPTERS[0] in names else "some base"
    for read in (lambda: load.read_config(tmp_path), lambda: load.load(tmp_path, TABLE, abstract())):
        with pytest.raises(
            PretrainedError, match=rf"holds a LoRA adapter \({', '.join(names)}\) of {of}.*Merge"
        ) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_quantised_weights_are_named_by_their_config(tmp_path):
    quantised = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / files.CONFIG).write_text(json.dumps(quantised))
    with pytest.raises(PretrainedError, match=r"quantised \(quantization_config: gptq\).*give the model"):
        load.read_config(tmp_path)


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path):
    theirs, _ = random_files(tmp_path)
    theirs["h.1.fc.wieght"] = theirs.pop("h.1.fc.weight")
    theirs["wte.weight"] = theirs["wte.weight"][:30]
    theirs["conv.bias"] = theirs["conv.bias"].astype(np.int8)
    theirs["h.4.fc.bias"] = theirs["h.3.fc.bias"]
    save_file(theirs, tmp_path / files.WEIGHTS)
    shapes = {**SHAPES, "layers/fcc/bias": (4, 24)}
    del shapes["layers/fc/bias"]
    with pytest.raises(PretrainedError) as caught:
        load.load(tmp_path, TABLE, abstract(shapes=shapes))
    message = str(caught.value)
    assert str(tmp_path) in message and "toy tower" in message
    assert "missing from the files (1):\n  h.1.fc.weight   (nearest: h.1.fc.wieght)" in message
    assert "h.1.fc.wieght   (nearest: h.1.fc.weight)" in message and "h.4.fc.bias" in message
    assert "wte.weight: expected [40, 8], the file has [30, 8]" in message
    assert "conv.bias: I8" in message
    assert "that the table lacks (1):\n  layers/fcc/bias   (nearest: layers/fc/bias)" in message
    assert "that ours lacks (1):\n  layers/fc/bias   (nearest: layers/fcc/bias)" in message
    assert "head" not in message


def test_another_prefix_or_architecture_is_said(tmp_path):
    random_files(tmp_path / "a", prefix="wrapper.tower.")
    with pytest.raises(PretrainedError, match=r"They seem to stand under 'wrapper\.tower\.'"):
        load.load(tmp_path / "a", TABLE, abstract())
    (tmp_path / "b").mkdir()
    save_file({"quite.different": np.zeros(3, np.float32)}, tmp_path / "b" / files.WEIGHTS)
    with pytest.raises(PretrainedError, match=r"files have \['quite.different'\]: another architecture\?"):
        load.load(tmp_path / "b", TABLE, abstract())


def test_constants_must_be_what_is_computed(tmp_path):
    constant = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    table = KeyMap("toy", ("net.",), keymap.linear("fc", "fc"), constants={"positions": constant})
    weights = {"net.fc.weight": np.ones((2, 3), np.float32), "net.fc.bias": np.ones(2, np.float32)}
    shapes = {"fc/kernel": (3, 2), "fc/bias": (2,)}
    for value in (None, constant, constant.astype(np.float16)):
        save_file(weights if value is None else {**weights, "net.positions": value}, tmp_path / files.WEIGHTS)
        load.load(tmp_path, table, abstract(shapes=shapes))
    for value in (constant + 2e-4, constant[:5], np.full_like(constant, np.nan)):
        save_file({**weights, "net.positions": value}, tmp_path / files.WEIGHTS)
        with pytest.raises(PretrainedError, match=r"not what is computed here \(1\):\n  net.positions"):
            load.load(tmp_path, table, abstract(shapes=shapes))


def test_repeats_must_be_equal(tmp_path, monkeypatch):
    """A tied head that is stored all the same: read past where it is equal, refused where it is not."""
    theirs, expected = random_files(tmp_path)
    table = dataclasses.replace(TABLE, ignored=(), repeats=((r"^head\.weight$", "wte.weight"),))
    monkeypatch.setattr(files, "_CHUNK_BYTES", 100)  # compared in several turns
    right = theirs["wte.weight"]
    save_file({**theirs, "head.weight": right}, tmp_path / files.WEIGHTS)
    np.testing.assert_array_equal(load.load(tmp_path, table, abstract())["tokens/table"], expected["tokens/table"])
    last = right.copy()
    last[-1, -1] += 1
    for wrong in (last, right[1:], right.astype(np.float16)):
        save_file({**theirs, "head.weight": wrong}, tmp_path / files.WEIGHTS)
        with pytest.raises(PretrainedError, match=r"not what it should repeat \(1\):\n  head.weight: config.json says"):
            load.load(tmp_path, table, abstract())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickles_are_refused(tmp_path, name):
    torch.save({"fc.weight": torch.ones(2, 3)}, tmp_path / name)
    with pytest.raises(PretrainedError, match=rf"(?s){name}.*Pickles are refused.*runs the code.*save_pretrained"):
        load.load(tmp_path, TABLE, abstract())


def test_damaged_files_are_named(tmp_path):
    random_files(tmp_path)
    path = tmp_path / files.WEIGHTS
    whole = path.read_bytes()
    for damaged in (whole[:-7], whole[:50], b"", struct.pack("<Q", 2**40) + whole[8:], whole[:8] + b"?" + whole[9:]):
        path.write_bytes(damaged)
        with pytest.raises(PretrainedError, match=rf"{path}.*no whole safetensors.*fetch it again"):
            load.load(tmp_path, TABLE, abstract())
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1000\n")
    with pytest.raises(PretrainedError, match="git lfs pull"):
        load.load(tmp_path, TABLE, abstract())
    path.unlink()
    with pytest.raises(PretrainedError, match=r"expected model\.safetensors or .* found nothing"):
        load.load(tmp_path, TABLE, abstract())


def test_a_file_cut_after_its_header_was_read_is_noticed(tmp_path):
    random_files(tmp_path)
    info = max(files.index(tmp_path).values(), key=lambda info: info.offset)
    with open(info.file, "r+b") as stream:
        stream.truncate(info.offset + 4)
    with pytest.raises(PretrainedError, match="ends at byte"):
        files.read(info)


def test_configs_are_completed_with_transformers_defaults(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "hidden_size": 24, "num_attention_heads": 3})
    )
    hf = load.read_config(tmp_path)
    assert (hf["hidden_size"], hf["layer_norm_eps"], hf["hidden_act"]) == (24, BertConfig().layer_norm_eps, "gelu")
    for wrong in ({"hidden_size": "24"}, {"hidden_size": 33}, {"rope_scaling": {"type": "yarn"}}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **wrong}))
        with pytest.raises(PretrainedError, match=r"config\.json: transformers refuses it"):
            load.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PretrainedError, match="no model_type"):
        load.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PretrainedError, match=r"config\.json is no JSON"):
        load.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(PretrainedError, match=r"no config\.json here, but nothing"):
        load.read_config(tmp_path)


def test_families_are_known_by_model_type():
    assert load.family_of({"model_type": "whisper"}, ("speech",)).__name__.endswith(".whisper")
    assert load.family_of({"model_type": "xlm-roberta"}).__name__.endswith(".bert")
    with pytest.raises(PretrainedError, match=r"'bert' is no speech model"):
        load.family_of({"model_type": "bert"}, ("speech",))
    with pytest.raises(PretrainedError, match=r"Did you mean 'xlm-roberta'"):
        load.family_of({"model_type": "xlm-robert"}, ("text",))


@pytest.fixture
def tiny_bert(tmp_path):
    directory = tmp_path / "bert"
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=30)
    BertModel(config).save_pretrained(directory)
    return directory


def test_fingerprint_changes_with_any_weight(tiny_bert):
    before = load.fingerprint(tiny_bert)
    assert before == load.fingerprint(tiny_bert)
    weights = load_file(tiny_bert / files.WEIGHTS)
    weights["encoder.layer.0.output.dense.bias"][3] += 1e-6
    save_file(weights, tiny_bert / files.WEIGHTS, metadata={"format": "pt"})
    assert load.fingerprint(tiny_bert) != before


def test_hub_ids_work_offline_when_cached(tiny_bert, tmp_path, monkeypatch):
    """huggingface_hub's cache layout, made by hand; the network is switched off."""
    cache, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    snapshot = cache / "models--someone--tiny-bert" / "snapshots" / commit
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_bert, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))

    for name in ("someone/tiny-bert", f"someone/tiny-bert@{commit}"):
        assert load.resolve(name) == snapshot
    family, cfg, definition = define(load.resolve("someone/tiny-bert"), "text")
    assert load.load(snapshot, family.key_map(cfg), definition.abstract)
    assert load.resolve(str(tiny_bert)) == tiny_bert

    (snapshot / files.WEIGHTS).unlink()  # as when only its tokenizer was ever fetched
    with pytest.raises(PretrainedError, match=rf"someone/tiny-bert: .*{commit}, lacks config\.json.*hf download"):
        load.resolve("someone/tiny-bert")
    for name in ("someone/other", "other@v1"):
        with pytest.raises(PretrainedError, match=rf"{name}: no such directory, not in the cache.*hf download"):
            load.resolve(name)
    for name in ("gs://bucket/model", "/no/such/directory", "a/b/c"):
        with pytest.raises(PretrainedError, match="no such directory, and no hub id"):
            load.resolve(name)
    with pytest.raises(PretrainedError, match="no hub id either: Cannot have"):
        load.resolve("a--b/c..d")


def test_a_mesh_in_context_and_replicas(tiny_bert, mesh8):
    family, cfg, definition = define(tiny_bert, "text")
    plain = load.load(tiny_bert, family.key_map(cfg), definition.abstract)
    for path, value in load.load(tiny_bert, family.key_map(cfg), abstract_on(definition, mesh8)).items():
        assert value.sharding.mesh == mesh8 and len(value.addressable_shards) == 8
        np.testing.assert_array_equal(value, plain[path], err_msg=path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_config_that_is_no_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "config.json")
    with pytest.raises(PretrainedError, match=r"config\.json: expected a file"):
        files.read_json(tmp_path / "config.json")
