"""EMOVO: acted Italian, six actors, 14 sentences, five of them without sense.

Facts: Costantini, Iaderola, Paoloni & Todisco 2014 (names, sentences, emotions), EmoBox 08280f2 (hours, ages, folds).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {
    "dis": "disgusto",
    "gio": "gioia",
    "neu": "neutro",
    "pau": "paura",
    "rab": "rabbia",
    "sor": "sorpresa",
    "tri": "tristezza",
}
_AGES = {"f1": "28", "f2": "23", "f3": "25", "m1": "30", "m2": "27", "m3": "30"}
_SENTENCES = {
    "b1": "Gli operai si alzano presto.",
    "b2": "I vigili sono muniti di pistola.",
    "b3": "La cascata fa molto rumore.",
    "l1": "L'autunno prossimo Tony partirà per la Spagna: nella prima metà di ottobre.",
    "l2": "Ora prendo la felpa di là ed esco per fare una passeggiata.",
    "l3": "Un attimo dopo s'è incamminato... ed è inciampato.",
    "l4": "Vorrei il numero telefonico del Signor Piatti.",
    "n1": "La casa forte vuole col pane.",
    "n2": "La forza trova il passo e l'aglio rosso.",
    "n3": "Il gatto sta scorrendo nella pera.",
    "n4": "Insalata pastasciutta coscia d'agnello limoncello.",
    "n5": "Uno quarantatré dieci mille cinquantasette venti.",
    "d1": "Sabato sera cosa farà?",
    "d2": "Porti con te quella cosa?",
}


class Emovo(PublicCorpus):
    """b short, l long, n nonsense, d questions. Three sentences are in Emozionalmente too (b1, b3, l4)."""

    name = "emovo"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="EMOVO",
        languages=("it",),
        utterances=588,
        hours=0.51,
        speakers=6,
        emotions=tuple(_EMOTIONS.values()),
        license="free for non-commercial use, with acknowledgement",
        obtain="http://voice.fub.it/activities/corpora/emovo/index.html",
        citation="Costantini, Iaderola, Paoloni & Todisco, EMOVO Corpus: an Italian Emotional Speech Database,"
        " LREC 2014",
        folder="EMOVO/f1/dis-f1-b1.wav",
    )
    GRAMMAR = re.compile(rf"(?P<emotion>{'|'.join(_EMOTIONS)})-(?P<speaker>[fm][123])-(?P<sentence>[bdln]\d)\.wav")
    EMOBOX_SPEAKERS = ("f2", "m3", "m2", "f3", "f1", "m1")

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """emotion, speaker, sentence."""
        return self.raw(
            match,
            speaker=match["speaker"],
            gender="female" if match["speaker"].startswith("f") else "male",
            age=_AGES[match["speaker"]],
            emotion_native=_EMOTIONS[match["emotion"]],
            transcript=_SENTENCES[match["sentence"]],
        )
