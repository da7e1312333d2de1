"""BanglaSER: acted Bangla, 34 lay speakers, three sentences, recorded on telephones and laptops.

Facts: Das et al. 2022 and https://data.mendeley.com/datasets/t9h6p943xy/5 (counts: 1,224 of four emotions, 243 neutral
by 27 speakers), version 2 of that page (sentences), nkululeko data/banglaser (fields of the names).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = ("happy", "sad", "angry", "surprise", "neutral")
_SENTENCES = ("১২ টা বেজে গেছে", "আমি জানতাম এমন কিছু হবে", "এ কেমন উপহার")


class Banglaser(PublicCorpus):
    """Named like RAVDESS, with other numbers for the emotions."""

    name = "banglaser"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="BanglaSER: a Bangla speech emotion recognition dataset",
        languages=("bn",),
        utterances=1467,
        speakers=34,
        emotions=_EMOTIONS,
        license="CC BY 4.0",
        obtain="https://data.mendeley.com/datasets/t9h6p943xy/5",
        citation="Das et al., BanglaSER: a speech emotion recognition dataset for the Bangla language,"
        " Data in Brief 2022",
        folder="BanglaSER/Actor 01/03-01-01-01-01-01-01.wav",
    )
    SPEAKERS = tuple(f"{actor:02}" for actor in range(1, 35))
    GRAMMAR = re.compile(r"03-01-0(?P<emotion>[1-5])-0[12]-0(?P<sentence>[1-3])-0[1-3]-(?P<actor>[012]\d|3[0-4])\.wav")

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """mode–script–emotion–intensity–sentence–repetition–actor; odd actors are men."""
        return self.raw(
            match,
            speaker=match["actor"],
            gender="male" if int(match["actor"]) % 2 else "female",
            emotion_native=_EMOTIONS[int(match["emotion"]) - 1],
            transcript=_SENTENCES[int(match["sentence"]) - 1],
        )
