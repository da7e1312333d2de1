"""AESDD: acted Greek, professional actors, twenty utterances an emotion, no neutral.

Facts: https://m3c.web.auth.gr/research/aesdd-speech-emotion-recognition and the README.txt of the download (names),
EmoBox 08280f2 (counts, the five names with "01").
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {"a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "s": "sadness"}


class Aesdd(PublicCorpus):
    """The first version had five actors (three women, two men); the sixth came with an update. Nothing says who of the
    six is a woman, nor what they say: the utterances are ambiguous out of context, and number 20 is improvised.

    EmoBox's fold is drawn by file: speakers are in train and test.
    """

    name = "aesdd"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Acted Emotional Speech Dynamic Database",
        languages=("el",),
        utterances=604,
        hours=0.69,
        speakers=6,
        emotions=tuple(_EMOTIONS.values()),
        license="none stated; published for research",
        obtain="https://m3c.web.auth.gr/research/aesdd-speech-emotion-recognition",
        citation="Vryzas, Kotsakis, Liatsou, Dimoulas & Kalliris, Speech Emotion Recognition for Performance"
        " Interaction, Journal of the AES 2018",
        folder="anger/a03 (3).wav",
    )
    SPEAKERS = tuple("123456")
    # A letter tells several takes of the same utterance apart.
    GRAMMAR = re.compile(r"(?P<emotion>[adfhs])(?P<utterance>\d\d) \((?P<speaker>[1-6])\)[a-c]?\.wav")
    CORRECTIONS = {f"{name} (01).wav": f"{name} (1).wav" for name in ("d03", "f10", "f11", "f12", "f13")}  # noqa: RUF012
    IGNORED = {r"s05 \(3\)\.wav$": "broken as published: no samples in it"}  # noqa: RUF012

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """emotion, utterance, speaker."""
        return self.raw(match, speaker=match["speaker"], emotion_native=_EMOTIONS[match["emotion"]])
