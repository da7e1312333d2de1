"""SUBESCO: acted Bangla, twenty professional actors, ten sentences.

Facts: Sultana et al. 2021 (sentences, names; https://zenodo.org/records/4526477), EmoBox 08280f2 (counts, folds, the
name with a bracket).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_SENTENCES = (
    "মৌমাছির চাক দেখে কুকুরটি ঘেউঘেউ করছে",
    "তুমি সব উলটপালট করে দিয়েছ",
    "সে কোন কিছু না বলেই চলে গেছে",
    "তোমাকে এখনই আমার সাথে যেতে হবে",
    "তোমার কাজটা করা ঠিক হয়নি",
    "ইঁদুর ছানাটা হারিয়ে গেল",
    "এখন প্রশ্ন করা যাবে না",
    "দরজার বাইরে কুকুরটি দাঁড়িয়ে আছে",
    "একদিন পরেই তার বিয়ে",
    "ডাকাতেরা ঢাল তলোয়ার নিয়ে এল",
)


class Subesco(PublicCorpus):
    """Men and women are numbered apart: F_01 and M_01 are two people."""

    name = "subesco"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="SUST Bangla Emotional Speech Corpus",
        languages=("bn",),
        utterances=7000,
        hours=7.83,
        speakers=20,
        emotions=("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
        license="CC BY 4.0",
        obtain="https://zenodo.org/records/4526477 (SUBESCO.zip)",
        citation="Sultana et al., SUST Bangla Emotional Speech Corpus (SUBESCO), PLoS ONE 2021",
        folder="F_02_MONIKA_S_1_NEUTRAL_5.wav",
    )
    GRAMMAR = re.compile(
        r"(?P<speaker>(?P<gender>[FM])_\d\d)_[A-Z]+_S_(?P<sentence>[1-9]|10)"
        r"_(?P<emotion>ANGRY|DISGUST|FEAR|HAPPY|NEUTRAL|SAD|SURPRISE)_\d\.wav"
    )
    CORRECTIONS = {"F_02_MONIKA_S_2_SURPRISE_3].wav": "F_02_MONIKA_S_2_SURPRISE_3.wav"}  # noqa: RUF012
    EMOBOX_SPEAKERS = (
        "F_03 M_03 M_08 M_09",
        "F_01 F_04 F_10 M_07",
        "F_06 F_08 M_05 M_06",
        "F_05 F_07 F_09 M_04",
        "F_02 M_01 M_02 M_10",
    )

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """gender, speaker, name, S(entence), its number, emotion, take."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender="female" if match["gender"] == "F" else "male",
            emotion_native=match["emotion"].lower(),
            transcript=_SENTENCES[int(match["sentence"]) - 1],
        )
