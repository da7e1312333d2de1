"""MER2023: clips of films and television series in Chinese, the challenge's labelled part.

Facts: Lian et al. 2023 and https://github.com/zeroQiaoba/MERTools (tables), EmoBox 08280f2 (files, formats, counts).
"""

import math
import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import public_corpus, source, tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

# The challenge's tracks: several labels, noise added to sound and picture, few labels.
_PARTS = ("train", "test1", "test2", "test3")


class Mer2023(PublicCorpus):
    """The split "test" holds the three tests; ids begin with the folder, "test2/sample_00005474". Speakers are unknown.
    Of test3 834 clips have labels, the other tens of thousands are left out. test3 has no valence.
    """

    name = "mer2023"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="MER 2023 challenge",
        languages=("zh",),
        utterances=5030,
        hours=5.94,
        emotions=("neutral", "angry", "sad", "happy", "worried", "surprise"),
        license="signed agreement, research only",
        obtain="https://huggingface.co/datasets/MERChallenge/MER2023",
        citation="Lian et al., MER 2023: Multi-label Learning, Modality Robustness, and Semi-Supervised Learning, 2023",
        folder="mer2023train/train/sample_00002721.avi, test1/*.avi, test2/*.mp4, test3/*.mp4, a *-label.csv each",
    )
    SUFFIXES = (".avi", ".mp4")
    GRAMMAR = re.compile(r"(?P<part>train|test[123])/sample(?:new)?_\d+\.(?:avi|mp4)")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """ "train/sample_00002721" -> row of its table."""
        labels = {}
        for part in _PARTS:
            rows = tables.rows(source.find(folder, f"{part}-label.csv"), columns=("name", "discrete"))
            labels |= {f"{part}/{name}": row for name, row in self.keyed(rows, lambda row: row.filled("name")).items()}
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Part and number."""
        row = self.labels.pop(match[0].rpartition(".")[0], None)
        if row is None:
            return public_corpus.UNLABELLED
        return self.raw(
            match,
            speaker="",
            emotion_native=self.label(row, "discrete"),
            valence=row.number("valence") if "valence" in row else math.nan,
            split="train" if match["part"] == "train" else "test",
        )
