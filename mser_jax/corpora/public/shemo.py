"""ShEMO: Persian from radio plays, 87 speakers, semi-natural, labelled by majority of twelve listeners.

Facts: Mohamad Nezami, Jamshid Lou & Karami 2019 and https://github.com/mansourehk/ShEMO (names, letters, 3,000
utterances, speakers); its transcript.zip (3,000 names: A 1042, N 1160, S 362, H 203, W 201, F 32); EmoBox 08280f2 keeps
2,838 of them.
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {"A": "anger", "F": "fear", "H": "happiness", "N": "neutral", "S": "sadness", "W": "surprise"}


class Shemo(PublicCorpus):
    """The place of a letter tells its meaning: F is female in the beginning, fear in the middle."""

    name = "shemo"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Sharif Emotional Speech Database",
        languages=("fa",),
        utterances=3000,
        hours=3.42,
        speakers=87,
        emotions=tuple(_EMOTIONS.values()),
        license="research only",
        obtain="https://github.com/mansourehk/ShEMO (female.zip, male.zip by git lfs, transcript.zip)",
        citation="Mohamad Nezami et al., ShEMO: a large-scale validated database for Persian speech emotion detection,"
        " Language Resources and Evaluation 2019",
        folder="male/M36S02.wav (and final text/M36S02.ort)",
    )
    WHOLE = 2838  # what EmoBox keeps
    GRAMMAR = re.compile(r"(?P<speaker>(?P<gender>[FM])\d\d)(?P<emotion>[AFHNSW])\d+\.wav")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """No labels, but orthographic transcripts: a file an utterance, some of them with a byte order mark."""
        self._texts = {path.stem: tables.text(path).strip() for path in source_lib.files(folder, (".ort",))}
        return {}

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """gender, speaker(2), emotion, number."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender="female" if match["gender"] == "F" else "male",
            emotion_native=_EMOTIONS[match["emotion"]],
            transcript=self._texts.get(match[0].removesuffix(".wav"), ""),
        )
