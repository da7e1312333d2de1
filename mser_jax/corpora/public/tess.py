"""TESS: acted Canadian English, two women, 200 words in one carrier phrase.

Facts: Pichora-Fuller & Dupuis 2020 (https://doi.org/10.5683/SP2/E8H2MF: names, ages, phrase, licence), EmoBox 08280f2
(counts, sampling rates: 24,414 Hz, and 96 kHz of OAF_food_fear).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_AGES = {"OAF": "64", "YAF": "26"}
_EMOTIONS = {
    "angry": "angry",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happy",
    "neutral": "neutral",
    "ps": "pleasant surprise",
    "sad": "sad",
}


class Tess(PublicCorpus):
    """The licence allows no derivatives: records made of it are for this machine and not to be passed on.

    EmoBox's fold is drawn by file: both speakers are in train and test.
    """

    name = "tess"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Toronto emotional speech set",
        languages=("en-CA",),
        utterances=2800,
        hours=1.60,
        speakers=2,
        emotions=tuple(_EMOTIONS.values()),
        license="CC BY-NC-ND 4.0",
        obtain="https://doi.org/10.5683/SP2/E8H2MF",
        citation="Pichora-Fuller & Dupuis, Toronto emotional speech set (TESS), Borealis 2020",
        folder="OAF_angry/OAF_back_angry.wav",
    )
    SPEAKERS = tuple(_AGES)
    GRAMMAR = re.compile(rf"(?P<speaker>[OY]AF)_(?P<word>[a-z]+)_(?P<emotion>{'|'.join(_EMOTIONS)})\.wav")
    CORRECTIONS = {"OA_bite_neutral.wav": "OAF_bite_neutral.wav"}  # noqa: RUF012

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """speaker (older or younger adult female), word, emotion."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender="female",
            age=_AGES[match["speaker"]],
            emotion_native=_EMOTIONS[match["emotion"]],
            transcript=f"Say the word {match['word']}.",
        )
