"""Emozionalmente: Italian, 431 people at home before their own microphone, 18 sentences, judged by 829 others.

Facts: Catania, Wilke & Garzotto 2025, https://zenodo.org/records/12616095 (tables, split; the first edition, record
6569824, has no split), EmoBox 08280f2 (counts, hours).
"""

import collections
import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import UNLABELLED, Facts, PublicCorpus, votes

_COLUMNS = {
    "samples": ("file_name", "actor", "emotion_expressed", "sentence"),
    "users": ("username",),
    "evaluations": ("file_name", "emotion_recognized"),
}
# What the names of the tables in metadata/split begin with.
_SPLITS = {"train": "train", "dev": "validation", "val": "validation", "test": "test"}


class Emozionalmente(PublicCorpus):
    """The label is what the speaker was asked for; what five listeners heard is in `votes`.

    EmoBox's fold is drawn by file; the official split is disjoint in speakers.
    """

    name = "emozionalmente"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Emozionalmente",
        languages=("it",),
        utterances=6902,
        hours=6.30,
        speakers=431,
        emotions=("anger", "disgust", "fear", "joy", "neutrality", "sadness", "surprise"),
        license="CC BY 4.0",
        obtain="https://zenodo.org/records/12616095 (emozionalmente_dataset.zip)",
        citation="Catania, Wilke & Garzotto, Emozionalmente: A Crowdsourced Corpus of Simulated Emotional Speech in"
        " Italian, IEEE Trans. Audio, Speech and Language Processing 2025",
        folder="metadata/samples.csv, users.csv, evaluations.csv, and audio/1613655062436.wav",
    )
    GRAMMAR = re.compile(r"\d+\.wav")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """File name -> row of samples.csv; keeps users by name, votes and official split by file."""
        samples, users, evaluations = (
            tables.rows(source_lib.find(folder, f"metadata/{name}.csv"), columns=columns)
            for name, columns in _COLUMNS.items()
        )
        self._users = self.keyed(users, lambda row: row["username"])
        self._votes = collections.defaultdict(list)
        for row in evaluations:
            self._votes[row["file_name"]].append(row["emotion_recognized"])
        self._splits = {}
        for path in source_lib.files(folder, (".csv",)):
            split = next((split for start, split in _SPLITS.items() if path.name.startswith(start)), "")
            if path.parent.name == "split" and split:
                self._splits |= {row["file_name"]: split for row in tables.rows(path, columns=("file_name",))}
        return self.keyed(samples, lambda row: row.filled("file_name"))

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """The name is the time of the recording; all else is in the tables."""
        row = self.labels.pop(match[0], None)
        if row is None:
            return UNLABELLED
        user = self._users.get(row["actor"], {})
        return self.raw(
            match,
            speaker=row.filled("actor"),
            gender=user.get("gender", ""),
            age=user.get("age", ""),
            emotion_native=self.label(row, "emotion_expressed"),
            votes=votes(self._votes[match[0]]) if match[0] in self._votes else "",
            transcript=row["sentence"],
            split=self._splits.get(match[0], ""),
        )
