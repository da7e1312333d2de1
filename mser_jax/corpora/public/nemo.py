"""nEMO: acted Polish, nine actors, ninety everyday sentences.

Facts: Christop 2024 and https://github.com/amu-cai/nEMO (data.tsv).
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_COLUMNS = ("file_id", "emotion", "raw_text", "speaker_id", "gender", "age")


class Nemo(PublicCorpus):
    """Everything but the sound stands in data.tsv."""

    name = "nemo"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="nEMO: Dataset of Emotional Speech in Polish",
        languages=("pl",),
        utterances=4481,
        hours=3.07,
        speakers=9,
        emotions=("anger", "fear", "happiness", "neutral", "sadness", "surprised"),
        license="CC BY-NC-SA 4.0",
        obtain="git clone https://github.com/amu-cai/nEMO, or https://huggingface.co/datasets/amu-cai/nEMO",
        citation="Christop, nEMO: Dataset of Emotional Speech in Polish, LREC-COLING 2024",
        folder="data.tsv and samples/EB0_anger_1.wav",
    )
    GRAMMAR = re.compile(r"[A-Z]{2}\d_[a-z]+_\d+\.wav")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """File name -> row of data.tsv."""
        rows = tables.rows(source_lib.find(folder, "data.tsv"), "\t", _COLUMNS)
        return self.keyed(rows, lambda row: row.filled("file_id"))

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """The row of this file."""
        row = self.labels.pop(match[0], None)
        if row is None:
            return LeftOut(match[0], "no label", "no row in data.tsv")
        return self.raw(
            match,
            speaker=row.filled("speaker_id"),  # the column is padded with blanks
            gender=row["gender"],
            age=row["age"],
            emotion_native=self.label(row, "emotion"),
            transcript=row["raw_text"],
        )
