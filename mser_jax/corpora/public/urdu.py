"""URDU: Urdu talk shows, 400 utterances of four emotions.

Facts: Latif et al. 2018 and https://github.com/siddiquelatif/URDU-Dataset (names, 38 speakers). The names hold 29
speakers, 18 men and 11 women (SM8 to SM16 do not occur), as EmoBox 08280f2 counts too.
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"}


class Urdu(PublicCorpus):
    """Spontaneous speech from the web: no transcripts, unequal speakers (one has 80 of 400)."""

    name = "urdu"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="URDU-Dataset",
        languages=("ur",),
        utterances=400,
        hours=0.28,
        speakers=38,
        emotions=tuple(_EMOTIONS.values()),
        license="research only",
        obtain="git clone https://github.com/siddiquelatif/URDU-Dataset",
        citation="Latif et al., Cross lingual speech emotion recognition: Urdu vs. Western languages, FIT 2018",
        folder="Neutral/SM20_F8_N012.wav",
    )
    GRAMMAR = re.compile(r"(?P<speaker>S(?P<gender>[MF])\d+)_F\d+_(?P<emotion>[AHNS])\d+\.wav")

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """speaker with gender, file of that speaker, emotion and number in it."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender="male" if match["gender"] == "M" else "female",
            emotion_native=_EMOTIONS[match["emotion"]],
        )
