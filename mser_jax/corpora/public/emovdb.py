"""EmoV-DB: acted English for speech synthesis, four speakers, sentences of CMU Arctic in five styles.

Facts: Adigwe et al. 2018 and https://github.com/numediart/EmoV-DB (speakers, names, text; its table adds up to 7,000),
EmoBox 08280f2 (the 6,887 names, rates).
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_GENDERS = {"bea": "female", "jenie": "female", "josh": "male", "sam": "male"}


class Emovdb(PublicCorpus):
    """The number of a file is that of the sentence in part A of CMU Arctic: put cmuarctic.data beside the recordings
    for transcripts.

    Amused and sleepy are left unlabelled: neither is one of the seven.
    """

    name = "emovdb"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Emotional Voices Database",
        languages=("en",),
        utterances=6887,
        hours=9.48,
        speakers=4,
        emotions=("amused", "angry", "disgusted", "neutral", "sleepy"),
        license="non-commercial research",
        obtain="https://www.openslr.org/115 (a tar.gz a speaker and style); text: http://festvox.org/cmu_arctic/cmuarctic.data",
        citation="Adigwe et al., The emotional voices database, arXiv:1806.09514, 2018",
        folder="jenie_Amused/amused_57-84_0057.wav",
    )
    SPEAKERS = tuple(_GENDERS)
    GRAMMAR = re.compile(
        r"(?P<speaker>bea|jenie|josh|sam)_(?P<emotion>Amused|Angry|Disgusted|Neutral|Sleepy)"
        r"/[A-Za-z]+_\d+[-_]\d+_(?P<sentence>\d{4})\.wav"
    )

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """No labels, but CMU Arctic's sentences: lines like `( arctic_a0001 "Author of the danger trail, …" )`."""
        self._texts = {
            number: sentence
            for path in source_lib.files(folder, ("cmuarctic.data",))
            for number, sentence in re.findall(r'arctic_a(\d{4}) "(.*)"', tables.text(path))
        }
        return {}

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """speaker and style in the folder; style, range of its annotation, sentence in the name."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender=_GENDERS[match["speaker"]],
            emotion_native=match["emotion"].lower(),
            transcript=self._texts.get(match["sentence"], ""),
        )
