"""A tokenizer that is not the model's is refused by name: no files, files of another model, languages it lacks."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mser_jax.data import text, tokenizer_check
from mser_jax.data.text import get_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ENGLISH = [*("the", "voice", "sounds", "angry", "sad", "happy", "emotion", "a", ".", ":"), *map(str, range(30))]
TEXTS = {"en": ["the voice sounds angry .", "emotion : sad ."]}


@pytest.fixture
def make(tmp_path):
    """make(words, name) -> directory with a tokenizer of whole words, and the config.json of a BERT."""

    def write(words=ENGLISH, name="model", closed=True):
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *words])}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if closed:
            inner.post_processor = processors.TemplateProcessing(
                "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
        PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 50}))
        return tmp_path / name

    return write


def refused(message, folder, rows=44, texts=None, init=None, **options):
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer_check.check(str(folder), rows, texts or TEXTS, init, **options)
    assert "\n" not in str(caught.value)


def test_the_models_own_passes(make):
    folder = make()
    for init in (None, folder):
        tokenizer_check.check(str(folder), 44, TEXTS, init, closed=True)
    tokenizer_check.check(str(make(name="same words elsewhere")), 44, TEXTS, folder, closed=True)
    tokenizer_check.check("byt5", 384, {"zh": ["情绪"]}, None)


@pytest.mark.parametrize(
    "gone", [{"tokenizer.json"}, {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}]
)
def test_no_tokenizer_is_not_made_up(make, gone):
    """transformers makes a vocabulary of special tokens for a directory that has only config.json."""
    folder = make()
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    refused(f"{folder}: no tokenizer here .*tokenizer.json.*but .*config.json.*Copy", folder)


def test_part_of_a_tokenizer_or_a_damaged_one_is_refused(make):
    folder = make(name="halved")
    words = {w: i for i, w in enumerate([*SPECIAL, *ENGLISH])}
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(words))
    refused("vocab.json but no merges.txt", folder)
    for content in ("{", '{"version": "1.0"}', ""):
        damaged = make(name=f"damaged {len(content)}")
        (damaged / "tokenizer.json").write_text(content)
        refused(f"{damaged}.*fetch", damaged)


def test_a_vocabulary_of_another_kind_without_its_config_is_not_called_damaged(make):
    folder = make(name="pieces")
    pieces = [("<unk>", 0.0), *((f"▁{word}", -1.0) for word in ENGLISH)]
    Tokenizer(models.Unigram(pieces, unk_id=0)).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    refused(f"{folder}/tokenizer.json: .*no tokenizer_config.json beside it; fetch that too", folder)


def test_a_lost_tokenizer_config_is_noticed(make):
    """By model_type alone transformers takes BERT's class, which splits words otherwise than the file says."""
    folder = make()
    (folder / "tokenizer_config.json").unlink()
    refused(r"tokenizer_config\.json is missing beside it", folder)


def test_real_files_without_their_config_are_noticed(weights, tmp_path):
    """multilingual-E5's tokenizer.json is no BERT's, though config.json says "bert"."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(weights / "multilingual-e5-small" / name, tmp_path)
    refused("tokenizer", tmp_path, rows=250_037)


def test_another_vocabulary_is_refused(make):
    folder = make()
    refused("ids up to 43 for a table of 40 rows: it is another model's", folder, rows=40)
    refused("has 44 ids, and the table in .* has 100 rows", folder, rows=100, init=folder)
    other = make([*ENGLISH[::-1]], name="shuffled")
    refused("is not that of .*model: .* ids mean something else", other, init=folder)
    refused("'byt5' is not that of|'byt5' has 384 ids", "byt5", rows=384, init=folder)
    refused("'byt5' has 384 ids, and the table", "byt5", rows=250_037, init=folder.parent)
    refused("no special tokens", make(name="open", closed=False), init=folder, closed=True)


def test_a_language_it_lacks_is_named(make):
    refused("does not know 'zh': 100% of", make(), texts={**TEXTS, "zh": ["情绪 愤怒"]})
    refused("'<unk>' of every text|<unk> of every text", make(["x"], name="tiny"), rows=5)


def test_texts_that_are_cut_alike_are_named():
    bytes_ = get_tokenizer("byt5")
    texts = {"angry": ["The voice sounds angry"], "sad": ["The voice sounds sad"]}
    tokenizer_check.tell_apart(bytes_, texts, 19)
    with pytest.raises(ValueError, match=r"'angry' and 'sad' are the same tokens.*after 18 .*they need 23"):
        tokenizer_check.tell_apart(bytes_, texts, 18)
    with pytest.raises(ValueError, match=r"'angry' is cut: .* needs 23 tokens"):
        tokenizer_check.tell_apart(bytes_, texts, 22, uncut=["angry"])
    tokenizer_check.tell_apart(bytes_, {"fear": ["Emotion: Angst."], "Angst": ["Emotion: Angst."]}, 64)


def test_words_that_are_unknown_or_the_same_are_named(make):
    """As emoji are to a vocabulary of words."""
    tokenizer = get_tokenizer(str(make()))
    tokenizer_check.check_words(tokenizer, {"a": "angry", "b": "sad"}, "text")
    with pytest.raises(ValueError, match=r"label '😡': the tokenizer does not know"):
        tokenizer_check.check_words(tokenizer, {"😡": "😡", "sad": "sad"}, "text")
    with pytest.raises(ValueError, match=r"labels 'fear' and 'Angst' are one and the same word in 'de': 'Angst'"):
        tokenizer_check.check_words(get_tokenizer("byt5"), {"fear": "Angst", "Angst": "Angst"}, "word in 'de'")


def test_every_end_that_the_files_name_is_found(make):
    folder = make()
    assert tokenizer_check.eos_tokens(folder) == ()
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7, "text_config": {"eos_token_id": [8, 9]}}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106]}))
    assert tokenizer_check.eos_tokens(folder) == (1, 7, 8, 9, 106)
    assert text.get_tokenizer(str(folder)).ends((3, 20)) == (3,), "20 is a word"
