"""Labels as a tree of tokens: what labels have in common is read once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class LabelTrie:
    """A static tree of token ids, built on the host.

    Inner nodes 0 … M are the beginnings that are to be continued: node 0 is the empty one (the prompt before the
    answer), nodes 1 … M are read by the LLM. An edge leads from an inner node to one of its continuations, whose
    probability is known from the node's logits; the last token of a label is therefore never read. A label's
    probability is the product along its path.

    Attributes:
        lengths: int32 [labels], tokens of each label, its end included where labels are closed.
        tokens: int32 [M], the token of each inner node but the first.
        depths: int32 [M], tokens before it in the label.
        sees: bool [M, M], `sees[i, j]`: j is i or an ancestor of i.
        parents: int32 [edges], the inner node (0 … M) that an edge leaves.
        children: int32 [edges], the token that it leads to.
        paths: int32 [labels, longest], each label's edges; filled up with `len(parents)`, the edge that costs nothing.
    """

    def __init__(self, labels: Sequence[Sequence[int]], end: int | None = None) -> None:
        """`labels`: token ids of each; where one is the beginning of another, all are closed with the token `end`.

        Raises:
            ValueError: no labels, one without tokens or with a negative one, or one that begins another and no `end`.
        """
        sequences = [tuple(int(token) for token in label) for label in labels]
        if not sequences or not all(sequences) or min(map(min, sequences)) < 0:
            raise ValueError(f"LabelTrie: labels={sequences}, expected one or more, each of one or more token ids ≥ 0")
        beginnings = {label[:n] for label in sequences for n in range(1, len(label))}
        if begin := beginnings.intersection(sequences):
            if end is None:
                raise ValueError(
                    f"LabelTrie: {min(begin)} begins another label; give `end`, the token that closes both"
                )
            sequences = [(*label, end) for label in sequences]
        # Shorter beginnings first: a parent comes before its children.
        inner = sorted(
            {label[:n] for label in sequences for n in range(len(label))}, key=lambda node: (len(node), node)
        )
        edges = sorted({label[: n + 1] for label in sequences for n in range(len(label))})
        number = {node: i for i, node in enumerate(inner)}
        edge = {path: i for i, path in enumerate(edges)}
        longest = max(map(len, sequences))
        self.lengths = np.array([len(label) for label in sequences], np.int32)
        self.tokens = np.array([node[-1] for node in inner[1:]], np.int32)
        self.depths = np.array([len(node) - 1 for node in inner[1:]], np.int32)
        self.sees = np.zeros((len(self.tokens), len(self.tokens)), bool)
        for i, node in enumerate(inner[1:]):
            self.sees[i, [number[node[:n]] - 1 for n in range(1, len(node) + 1)]] = True
        self.parents = np.array([number[path[:-1]] for path in edges], np.int32)
        self.children = np.array([path[-1] for path in edges], np.int32)
        self.paths = np.full((len(sequences), longest), len(edges), np.int32)
        for i, label in enumerate(sequences):
            self.paths[i, : len(label)] = [edge[label[: n + 1]] for n in range(len(label))]
