"""The real Gemma 3 hears soft tokens: labels scored by a tree against transformers, a whole sequence for each."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from towers import define
from transformers import AutoModelForCausalLM, AutoTokenizer

from mser_jax import state
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.label_trie import LabelTrie
from mser_jax.models.speech_llm import SPEECH, SpeechLLM, SpeechLLMConfig, log_likelihood
from mser_jax.models.whisper import WhisperConfig
from mser_jax.pretrained import load

WORDS = ("angry", "happy", "sad", "sadness", "boredom", "jealousy")
QUESTIONS = ("How does the speaker feel?", "Answer in one word: which emotion do you hear in this voice?")


def test_labels_of_one_tree_equal_transformers(weights):
    """Prompts of two lengths, "sad" begins "sadness"; 1e-4 maximal absolute difference a token, f32.

    And soft tokens as this network makes them are within 10 % of the scale of Gemma's own embeddings.
    """
    directory = weights / "gemma-3-270m"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rng = np.random.default_rng(0)

    def ids(text, **options):
        return tokenizer(text, **options)["input_ids"]

    ends = [ids(f"\n{text}<end_of_turn>\n<start_of_turn>model\n", add_special_tokens=False) for text in QUESTIONS]
    plain = [[*ids("<start_of_turn>user\n"), *(SPEECH,) * 3, *after] for after in ends]
    width = max(map(len, plain))
    tokens = np.array([[0] * (width - len(row)) + row for row in plain], np.int32)
    mask = np.arange(width)[None] >= width - np.array([[len(row)] for row in plain])
    labels = [ids(word, add_special_tokens=False) for word in WORDS]
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    trie = LabelTrie(labels, end)
    assert trie.lengths.max() == 4 and len(trie.tokens) > len(WORDS)

    family, llm, _ = define(directory, "llm")
    cfg = SpeechLLMConfig(
        speech=WhisperConfig(num_layers=1, width=48, num_heads=2, mlp_width=96),
        llm=llm,
        qformer=QFormerConfig(num_layers=1, num_queries=3, width=48, num_heads=2, mlp_width=96),
    )
    definition = state.define(lambda rngs: SpeechLLM(cfg, rngs))
    wanted = {path.removeprefix("llm/"): leaf for path, leaf in definition.abstract.items() if path.startswith("llm/")}
    table = load.load(directory, family.key_map(llm), wanted)
    params = {path: jnp.ones(leaf.shape) for path, leaf in definition.abstract.items() if not path.startswith("llm/")}
    params |= {f"llm/{path}": value for path, value in table.items()}
    soft = rng.standard_normal((2, 3, llm.width)).astype(np.float32)
    score = jax.jit(lambda params, soft: log_likelihood(definition.merge(params), soft, tokens, mask, trie))
    found = np.asarray(score(params, soft))

    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    expected = np.zeros_like(found)
    with torch.no_grad():
        for row, prompt in enumerate(plain):
            for i, label in enumerate(labels):
                sequence = torch.tensor([*prompt, *label])
                x = theirs.get_input_embeddings()(sequence.clamp(min=0))
                x[sequence == SPEECH] = torch.from_numpy(soft[row])
                answer = [*label, end]
                logits = theirs(inputs_embeds=x[None], logits_to_keep=len(answer)).logits[0].double()
                expected[row, i] = logits.log_softmax(-1)[range(len(answer)), answer].sum()
    assert expected.std() > 1
    np.testing.assert_allclose(found / trie.lengths, expected / trie.lengths, atol=1e-4, rtol=0)

    embeddings = theirs.get_input_embeddings()(torch.arange(1000)).detach().numpy()
    scale = definition.merge(params).soft_scale
    np.testing.assert_allclose(np.sqrt(np.square(embeddings).mean()), scale, rtol=0.1)
