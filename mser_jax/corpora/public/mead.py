"""MEAD: acted English on video, eight emotions at three levels; its sound.

Facts: Wang et al. 2020, https://wywu.github.io/projects/MEAD/MEAD.html and https://github.com/uniBruce/Mead (issues 12
and 14: a number is not the same sentence for every speaker, a few files hold several), EmoBox 08280f2 (files, counts).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = ("neutral", "angry", "contempt", "disgusted", "fear", "happy", "sad", "surprised")


class Mead(PublicCorpus):
    """The 48 published speakers. As every speaker comes as an archive of the sound and others of the video, take the
    sound alone. No transcripts: which sentence a number is, is not the same throughout.
    """

    name = "mead"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Multi-view Emotional Audio-visual Dataset",
        languages=("en",),
        utterances=31_729,
        speakers=48,
        emotions=_EMOTIONS,
        license="research, not commercial",
        obtain="https://wywu.github.io/projects/MEAD/MEAD.html (audio.tar of every speaker)",
        citation="Wang et al., MEAD: A Large-scale Audio-visual Dataset for Emotional Talking-face Generation, 2020",
        folder="W019/audio/neutral/level_1/020.m4a",
    )
    SUFFIXES = (".m4a",)
    GRAMMAR = re.compile(
        rf"(?P<speaker>[MW]\d\d\d)/(?:audio/)+(?P<emotion>{'|'.join(_EMOTIONS)})/level_[123]/\d\d\d\w*\.m4a"
    )

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """Speaker (M or W and number), emotion, level, number."""
        gender = "female" if match["speaker"].startswith("W") else "male"
        return self.raw(match, speaker=match["speaker"], gender=gender, emotion_native=match["emotion"])
