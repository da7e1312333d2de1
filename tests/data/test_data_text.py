import json

import numpy as np
import pytest

from mser_jax.data import text

SAMPLES = [
    "",
    "Emotion: anger.",
    "Émotion : colère.",
    "情绪：愤怒。",
    "a < b",
    "x</s>y<pad>z",
    "<extra_id_0> \n\t  🙂",
    "a  b ",
]


def reference(sample):
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()(sample)["input_ids"]


@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_byte_tokenizer_equals_transformers():
    rng = np.random.default_rng(0)
    points = [c for c in range(1, 0x2FFFF) if not 0xD800 <= c < 0xE000]
    samples = SAMPLES + ["".join(map(chr, rng.choice(points, 12))) for _ in range(50)]
    ids, mask = text.get_tokenizer("byt5").encode(samples, 64)
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (len(samples), 64)
    for sample, row, kept in zip(samples, ids, mask, strict=True):
        expected = reference(sample)
        assert len(expected) <= 64
        assert row[kept].tolist() == expected
        assert not row[~kept].any() and kept[: kept.sum()].all()


def test_byte_tokenizer_cuts_and_closes():
    ids, mask = text.get_tokenizer("byt5").encode(["abcdef", "ab", ""], 4)
    assert ids.tolist() == [[100, 101, 102, 1], [100, 101, 1, 0], [1, 0, 0, 0]]
    assert mask.sum(axis=1).tolist() == [4, 3, 1]


def test_vocab_size_covers_every_id():
    from transformers import ByT5Tokenizer

    assert text.get_tokenizer("byt5").vocab_size == len(ByT5Tokenizer())


def test_directory_tokenizer(tmp_path):
    """A small WordPiece tokenizer, written here."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "voice", "sounds", "sad"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    tokenizer = text.get_tokenizer(str(tmp_path))
    ids, mask = tokenizer.encode(["the voice sounds sad", "sad"], 5)
    assert tokenizer.vocab_size == 9
    assert ids.tolist() == [[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]]
    assert mask.sum(axis=1).tolist() == [5, 3]
    expected = BertTokenizerFast.from_pretrained(str(tmp_path))("the voice sounds sad")["input_ids"]
    assert tokenizer.encode(["the voice sounds sad"], 6)[0][0].tolist() == expected


def test_unknown_tokenizer_is_refused():
    with pytest.raises(FileNotFoundError, match="byt5"):
        text.get_tokenizer("no/such/model")


def test_hash31_is_stable_and_fits():
    assert text.hash31("Emotion: anger.") == text.hash31("Emotion: anger.")
    values = {text.hash31(str(i)) for i in range(20_000)}
    assert len(values) == 20_000 and min(values) >= 0 and max(values) < 2**31
    # Written down once: checkpoints and logs of different versions must agree.
    assert text.hash31("Emotion: anger.") == 1357821128
