"""The tree of labels: every label is found again along its path, and nothing else is read."""

import numpy as np
import pytest

from mser_jax.models.label_trie import LabelTrie


def spelled(trie):
    """The labels' tokens as the arrays tell them, by walking each path from node 0."""
    out = []
    for path in trie.paths:
        node, label = 0, []
        for edge in path[path < len(trie.parents)]:
            assert trie.parents[edge] == node
            label.append(int(trie.children[edge]))
            node = inner_child(trie, node, label)
        out.append(tuple(label))
    return out


def inner_child(trie, node, label):
    """The inner node that `label` ends at, found by its own token, depth and ancestors; None for a leaf."""
    above = {node, *(np.flatnonzero(trie.sees[node - 1]) + 1)} if node else set()
    for i, (token, depth) in enumerate(zip(trie.tokens, trie.depths, strict=True)):
        if token == label[-1] and depth == len(label) - 1 and set(np.flatnonzero(trie.sees[i]) + 1) == above | {i + 1}:
            return i + 1
    return None


@pytest.mark.parametrize("seed", range(5))
def test_every_label_is_found_along_its_path(seed):
    rng = np.random.default_rng(seed)
    labels = [tuple(rng.integers(0, 4, rng.integers(1, 6)).tolist()) for _ in range(rng.integers(1, 41))]
    trie = LabelTrie(labels, end=9)
    begins = any(len(a) < len(b) and b[: len(a)] == a for a in labels for b in labels)
    closed = [(*label, 9) for label in labels] if begins else labels
    assert spelled(trie) == closed
    np.testing.assert_array_equal(trie.lengths, [len(label) for label in closed])
    inner = {label[:n] for label in closed for n in range(1, len(label))}
    assert len(trie.tokens) == len(inner), "what labels share is read once, and no label's last token"
    assert len(trie.parents) == len(set(zip(trie.parents, trie.children, strict=True)))


def test_single_tokens_need_no_reading():
    trie = LabelTrie([[5], [3], [5]])
    assert len(trie.tokens) == 0 and trie.sees.shape == (0, 0)
    np.testing.assert_array_equal(trie.children[trie.paths[:, 0]], [5, 3, 5])
    np.testing.assert_array_equal(trie.lengths, [1, 1, 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "expected one or more"),
        ([[1], []], "each of one or more token ids"),
        ([[1, -1]], "token ids ≥ 0"),
        ([[1], [1, 2]], r"\(1,\) begins another label; give `end`"),
    ],
)
def test_what_is_no_tree_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        LabelTrie(labels)
