"""ASED: acted Amharic in four dialects, 65 speakers, kept where five of eight judges agreed.

Facts: Retta et al. 2022 and https://github.com/Ethio2021/ASED_V1 (names, speakers), EmoBox 08280f2 (the 2,474 names).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {"n": "neutral", "f": "fearful", "h": "happy", "s": "sad", "a": "angry"}


class Ased(PublicCorpus):
    """Five women have one file each that says man; the name with 01 is free, so that is what was meant."""

    name = "ased"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Amharic Speech Emotion Dataset v1",
        languages=("am",),
        utterances=2474,
        hours=2.11,
        speakers=65,
        emotions=tuple(_EMOTIONS.values()),
        license="not stated",
        obtain="https://github.com/Ethio2021/ASED_V1",
        citation="Retta et al., A new Amharic speech emotion dataset and classification benchmark, ACM TALLIP 2022",
        folder="05Angry/a5-02-01-01-33.wav",
    )
    GRAMMAR = re.compile(
        r"(?P<emotion>[nfhsa])[1-5]-(?P<sentence>0[1-7])-0[12]-(?P<gender>0[12])-(?P<speaker>[0-6]\d)\.wav"
    )
    CORRECTIONS = {  # noqa: RUF012
        "S4-04-02-01-29.wav": "s4-04-02-01-29.wav",
        "f2-01-01-02-15.wav": "f2-01-01-01-15.wav",
        "f2-02-01-02-25.wav": "f2-02-01-01-25.wav",
        "f2-07-02-02-21.wav": "f2-07-02-01-21.wav",
        "s4-01-02-02-09.wav": "s4-01-02-01-09.wav",
        "s4-04-01-02-23.wav": "s4-04-01-01-23.wav",
    }

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """emotion and folder–sentence–repetition–gender–speaker."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender="female" if match["gender"] == "01" else "male",
            emotion_native=_EMOTIONS[match["emotion"]],
        )
