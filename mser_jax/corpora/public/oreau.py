"""Oréau: French, 32 people who are no actors, sentences of the classroom.

Facts: Kerkeni et al. 2020 (https://zenodo.org/records/4405783), EmoBox 08280f2 (names, counts).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {
    "C": "colère",
    "D": "dégoût",
    "J": "joie",
    "N": "neutre",
    "P": "peur",
    "S": "surprise",
    "T": "tristesse",
}
_GENDERS = {"f": "female", "m": "male"}


class Oreau(PublicCorpus):
    """The second version, of which listeners recognised each utterance; the first has the same names and 502.

    EmoBox's fold is drawn by file: speakers are in train and test.
    """

    name = "oreau"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Oréau, French emotional speech database, version 2",
        languages=("fr",),
        utterances=434,
        hours=0.34,
        speakers=32,
        emotions=tuple(_EMOTIONS.values()),
        license="CC BY 4.0",
        obtain="https://zenodo.org/records/4405783 (OréauFR_02)",
        citation="Kerkeni, Cleder, Serrestou & Raoof, French Emotional Speech Database - Oréau, Zenodo 2020",
        folder="OréauFR_02/f/sessj/10a02Ja.wav",
    )
    GRAMMAR = re.compile(
        r"(?P<gender>[fm])/sess[a-z]/(?P<speaker>\d\d)(?P<sentence>[a-z]\d\d)(?P<emotion>[CDJNPST])[a-z]\.wav"
    )

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """gender / session of one emotion / speaker, sentence, emotion, version."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender=_GENDERS[match["gender"]],
            emotion_native=_EMOTIONS[match["emotion"]],
        )
