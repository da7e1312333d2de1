"""SAVEE: acted British English, four men, TIMIT sentences.

Facts: Jackson & Haq (http://kahlan.eps.surrey.ac.uk/savee: names, speakers, AudioData/Info.txt), EmoBox 08280f2
(hours, folds).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}


class Savee(PublicCorpus):
    """As its owners ship it (DC/a01.wav) or as it is passed on (DC_a01.wav): the id is DC_a01.

    The order of the sentences is not published, so there are no transcripts.
    """

    name = "savee"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Surrey Audio-Visual Expressed Emotion",
        languages=("en-GB",),
        utterances=480,
        hours=0.51,
        speakers=4,
        emotions=tuple(_EMOTIONS.values()),
        license="free for research, on registration",
        obtain="http://kahlan.eps.surrey.ac.uk/savee/Download.html (AudioData.zip)",
        citation="Jackson & Haq, Surrey Audio-Visual Expressed Emotion (SAVEE) database, University of Surrey 2014",
        folder="AudioData/DC/a01.wav",
    )
    GRAMMAR = re.compile(rf"(?P<speaker>DC|JE|JK|KL)[/_](?P<emotion>{'|'.join(_EMOTIONS)})(?P<sentence>\d\d)\.wav")
    EMOBOX_SPEAKERS = ("JE", "KL", "DC", "JK")

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """speaker, emotion, sentence."""
        return self.raw(
            id=f"{match['speaker']}_{match['emotion']}{match['sentence']}",
            speaker=match["speaker"],
            gender="male",
            emotion_native=_EMOTIONS[match["emotion"]],
        )
