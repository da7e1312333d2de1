"""EmoDB: acted German, ten actors, ten everyday sentences.

Facts: Burkhardt et al. 2005 and http://emodb.bilderbar.info (speakers, sentences, codes), EmoBox 08280f2 (counts).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {
    "W": "Ärger",
    "L": "Langeweile",
    "E": "Ekel",
    "A": "Angst",
    "F": "Freude",
    "T": "Trauer",
    "N": "neutral",
}
_MEN = ("03", "10", "11", "12", "15")
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


class Emodb(PublicCorpus):
    """EmoBox's five folds are drawn by file: speakers are in train and test."""

    name = "emodb"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Berlin Database of Emotional Speech",
        languages=("de",),
        utterances=535,
        hours=0.41,
        speakers=10,
        emotions=tuple(_EMOTIONS.values()),
        license="CC0 1.0",
        obtain="http://emodb.bilderbar.info/download/download.zip, or https://zenodo.org/records/17651657",
        citation="Burkhardt et al., A database of German emotional speech, Interspeech 2005",
        folder="wav/03a01Wa.wav",
    )
    SPEAKERS = ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")
    GRAMMAR = re.compile(r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])[a-g]\.wav")

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """speaker, sentence, emotion, version."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender="male" if match["speaker"] in _MEN else "female",
            emotion_native=_EMOTIONS[match["emotion"]],
            transcript=_SENTENCES.get(match["sentence"], ""),
        )
