"""RAVDESS: acted English, 24 actors, two sentences, speech only.

Facts: Livingstone & Russo 2018 (https://zenodo.org/records/1188976), EmoBox 08280f2 (counts, folds).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
_SENTENCES = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}


class Ravdess(PublicCorpus):
    """The audio-only speech files; the song files share the grammar (channel 02) and are left out."""

    name = "ravdess"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Ryerson Audio-Visual Database of Emotional Speech and Song",
        languages=("en",),
        utterances=1440,
        hours=1.48,
        speakers=24,
        emotions=_EMOTIONS,
        license="CC BY-NC-SA 4.0",
        obtain="https://zenodo.org/records/1188976 (Audio_Speech_Actors_01-24.zip)",
        citation="Livingstone & Russo, The Ryerson Audio-Visual Database of Emotional Speech and Song, PLoS ONE 2018",
        folder="Actor_01/03-01-06-01-02-01-12.wav",
    )
    GRAMMAR = re.compile(
        r"03-01-0(?P<emotion>[1-8])-0(?P<intensity>[12])-(?P<sentence>0[12])-0[12]-(?P<actor>\d\d)\.wav"
    )
    IGNORED = {r"0[123]-02(-\d\d){5}\.\w+$": "song", r"0[12]-01(-\d\d){5}\.\w+$": "video"}  # noqa: RUF012

    EMOBOX_SPEAKERS = ("01 11 20 21", "04 10 12 14", "08 09 19 23", "03 05 07 24", "02 15 16 18", "06 13 17 22")

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """modality–channel–emotion–intensity–sentence–repetition–actor; odd actors are men."""
        actor = int(match["actor"])
        return self.raw(
            match,
            speaker=match["actor"],
            gender="male" if actor % 2 else "female",
            emotion_native=_EMOTIONS[int(match["emotion"]) - 1],
            transcript=_SENTENCES[match["sentence"]],
        )
