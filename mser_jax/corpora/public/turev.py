"""TurEV-DB: acted Turkish, six speakers, 82 single words in four emotions.

Facts: Canpolat, Ormanoğlu & Zeyrek 2020 and https://github.com/Xeonen/TurEV-DB (names, counts); men and women are told
by the median pitch of their sad words (94 to 128 Hz and 232 to 252 Hz).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_MEN = ("1157", "1358", "6783")


class Turev(PublicCorpus):
    """No neutral: calm takes its place, as a merge that reports count. One speaker (1157) was never calm or happy.

    Words are written as in the names, without the letters ç ğ ı ö ş ü.
    """

    name = "turev"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Turkish Emotion-Voice Database",
        languages=("tr",),
        utterances=1735,
        hours=0.46,
        speakers=6,
        emotions=("angry", "calm", "happy", "sad"),
        license="CC BY-NC-ND 4.0",
        obtain="git clone https://github.com/Xeonen/TurEV-DB",
        citation="Canpolat et al., Turkish Emotion Voice Database (TurEV-DB), SLTU-CCURL 2020",
        folder="Sound Source/Calm/1984_sk_eger.wav",
    )
    SPEAKERS = ("1157", "1234", "1358", "1984", "6783", "7895")
    GRAMMAR = re.compile(r"(?P<emotion>Angry|Calm|Happy|Sad)/(?P<speaker>\d{4})_(kz|sk|mt|hl)_(?P<word>[a-z]+)\.wav")
    CORRECTIONS = {"Sad/7895_hl_ogul1.wav": "Sad/7895_hl_ogul.wav"}  # noqa: RUF012
    IGNORED = {r"(^|/)Model Output for Test Data/": "a copy, filtered for an experiment"}  # noqa: RUF012

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """folder of the emotion, then speaker, two letters of its Turkish name, word."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender="male" if match["speaker"] in _MEN else "female",
            emotion_native=match["emotion"].lower(),
            transcript=match["word"],
        )
