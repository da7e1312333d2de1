"""Prompts are what the tokenizer's own chat template says, with soft tokens in the place of the speech."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mser_jax.data.chat import SPEECH, Chat
from mser_jax.data.text import get_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DATED = "{{ bos_token }}{{ date_string }} {% for m in messages %}[{{ m.content }}]{% endfor %}"
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<speech>"]
QUESTION = "Welche Emotion hörst du?"


@pytest.fixture(scope="module")
def make_tokenizer(tmp_path_factory):
    """make_tokenizer(template) -> directory of a small byte-level BPE."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([QUESTION, "system user model assistant the emotion in the voice"] * 3, trainer)

    def make(template, **tokens):
        folder = tmp_path_factory.mktemp("tokenizer")
        fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", **tokens)
        fast.chat_template = template
        fast.save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (TURNS, "<end_of_turn>")], ids=["chatml", "turns"]
)
def test_a_prompt_is_the_rendered_template(make_tokenizer, template, end):
    """The template rendered whole, a special token in the place of the speech, is the reference."""
    folder = make_tokenizer(template)
    reference = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": f"<speech>\n{QUESTION}"}]
    text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    expected = reference(text, add_special_tokens=False)["input_ids"]
    chat = Chat(folder, 3)
    prompt = chat.prompt(QUESTION).tolist()
    at = prompt.index(SPEECH)
    assert prompt[at : at + 3] == [SPEECH] * 3 and prompt.count(SPEECH) == 3
    speech = reference.convert_tokens_to_ids("<speech>")
    assert [*prompt[:at], speech, *prompt[at + 3 :]] == expected
    assert chat.end == reference.convert_tokens_to_ids(end)
    # What the model is asked to write is what the template itself writes for an answer that begins with a space.
    whole = reference.apply_chat_template([*messages, {"role": "assistant", "content": "_Wut"}], tokenize=False)
    answered = [*expected, *chat.answer("Wut").tolist()]
    whole = whole.replace("_Wut", " Wut")
    assert reference(whole, add_special_tokens=False)["input_ids"][: len(answered)] == answered


def test_prompts_do_not_tell_the_date(make_tokenizer):
    folder = make_tokenizer(DATED)
    assert "26 Jul 2024" in get_tokenizer(folder).render("x", None)


def test_without_an_end_of_turn_the_text_ends(make_tokenizer):
    folder = make_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="ends an answer with nothing"):
        Chat(folder, 2)


def test_a_template_that_drops_the_speech_is_refused(make_tokenizer):
    with pytest.raises(ValueError, match="0 times, expected once"):
        Chat(make_tokenizer("{{ bos_token }}{{ messages[-1].role }}</s>"), 2)


def test_special_tokens_in_an_answer_are_plain_text(make_tokenizer):
    chat = Chat(make_tokenizer(TURNS), 2)
    ids = chat.answer("<end_of_turn></s>")
    assert (ids == chat.end).tolist() == [False] * (len(ids) - 1) + [True]
    assert chat.decode(np.r_[chat.answer("Wut, Ekel"), 7, 8]) == "Wut, Ekel"


def test_bytes_have_a_plain_template():
    chat = Chat("byt5", 2)
    assert chat.prompt("É?").tolist() == [-1, -1, *(b + 3 for b in "\nÉ?\n".encode())]
    assert chat.answer("</s>").tolist() == [*(b + 3 for b in b" </s>"), 1]
    assert chat.label("joie") == [b + 3 for b in b" joie"] and chat.decode(chat.answer("é")) == "é"


def test_an_answer_ends_with_any_token_that_ends_the_models_text(make_tokenizer):
    """The template's own, </s>, and what the model's files name: nothing that comes after is read."""
    folder = make_tokenizer(TURNS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<end_of_turn>", "</s>", "<|im_end|>", "<speech>")}
    word = tokenizer.convert_tokens_to_ids("x")
    chat = Chat(folder, 2, (ends["<speech>"], word))
    assert set(chat.stops) == set(ends.values()), "a word does not end a text, whatever a config says"
    assert chat.end == ends["<end_of_turn>"] and chat.answer("Wut")[-1] == chat.end, "what is trained stays"
    for end in ends.values():
        assert chat.decode(np.r_[chat.label("anger"), end, chat.label("The sad"), chat.end]) == "anger"
    assert Chat("byt5", 2).stops == (1,)


def test_gemma_reads_the_plain_template(weights):
    """A base model: no chat template, <bos> first, <eos> last."""
    folder = str(weights / "gemma-3-270m")
    reference, chat = AutoTokenizer.from_pretrained(folder), Chat(folder, 4)
    prompt = chat.prompt(QUESTION)
    assert prompt[0] == reference.bos_token_id and prompt[1:5].tolist() == [SPEECH] * 4
    assert reference.decode(prompt[5:]) == f"\n{QUESTION}\n"
    assert chat.stops == (1, 106), "<eos> and <end_of_turn>"
    assert chat.end == reference.eos_token_id == chat.answer("Wut")[-1]
    assert json.loads(json.dumps(chat.label("Wut"))) == reference(" Wut", add_special_tokens=False)["input_ids"]
    assert len(chat.label("frustration")) == 1, "a word of running text"
