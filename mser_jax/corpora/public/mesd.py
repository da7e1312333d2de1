"""MESD: Mexican Spanish, single words, voices of women, men and children.

Facts: Duville, Alonso-Valerdi & Ibarra-Zarate 2021 (https://data.mendeley.com/datasets/cy34mh68j9), EmoBox 08280f2
(names, counts).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = ("Anger", "Disgust", "Fear", "Happiness", "Neutral", "Sadness")
_GENDERS = {"F": "female", "M": "male", "C": ""}


class Mesd(PublicCorpus):
    """`speaker` is the kind of voice, F, M or C (child); which of 3 women, 2 men and 6 children is not published.

    Names have no accents, and so the transcripts have none. EmoBox's fold is drawn by file.
    """

    name = "mesd"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Mexican Emotional Speech Database",
        languages=("es-MX",),
        utterances=862,
        hours=0.17,
        speakers=11,
        emotions=_EMOTIONS,
        license="CC BY 4.0",
        obtain="https://data.mendeley.com/datasets/cy34mh68j9",
        citation="Duville, Alonso-Valerdi & Ibarra-Zarate, Mexican Emotional Speech Database Based on Semantic,"
        " Frequency, Familiarity, Concreteness, and Cultural Shaping of Affective Prosody, Data 2021",
        folder="Mexican Emotional Speech Database (MESD)/Anger_F_A_tarde.wav",
    )
    SPEAKERS = tuple(_GENDERS)
    GRAMMAR = re.compile(rf"(?P<emotion>{'|'.join(_EMOTIONS)})_(?P<voice>[FMC])_(?P<list>[AB])_(?P<words>\w+)\.wav")

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """emotion, voice, list of words (A in every emotion, B its own for each), words."""
        return self.raw(
            match,
            speaker=match["voice"],
            gender=_GENDERS[match["voice"]],
            emotion_native=match["emotion"],
            transcript=match["words"].replace("_", " "),
        )
