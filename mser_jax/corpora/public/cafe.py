"""CaFE: acted Canadian French, twelve actors, six sentences, two intensities.

Facts: Gournay, Lahaie & Lefebvre 2018 and the Readme of https://zenodo.org/records/1478765 (names, sentences, ages),
EmoBox 08280f2 (hours, folds).
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {
    "C": "colère",
    "D": "dégoût",
    "J": "joie",
    "N": "neutre",
    "P": "peur",
    "S": "surprise",
    "T": "tristesse",
}
_AGES = (46, 64, 18, 50, 22, 34, 15, 25, 42, 20, 35, 37)
_SENTENCES = (
    "Un cheval fou dans mon jardin.",
    "Deux ânes aigris au pelage brun.",
    "Trois cygnes aveugles au bord du lac.",
    "Quatre vieilles truies éléphantesques.",
    "Cinq pumas fiers et passionnés.",
    "Six ours aimants domestiqués.",
)


class Cafe(PublicCorpus):
    """Folders with accents come out of the zip as "ColŠre"; only the file's name is read."""

    name = "cafe"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Canadian French Emotional speech database",
        languages=("fr-CA",),
        utterances=936,
        hours=1.15,
        speakers=12,
        emotions=tuple(_EMOTIONS.values()),
        license="CC BY-NC-SA 4.0",
        obtain="https://zenodo.org/records/1478765 (CaFE_48k.zip)",
        citation="Gournay, Lahaie & Lefebvre, A Canadian French Emotional Speech Dataset, ACM Multimedia Systems 2018",
        folder="CaFE_48k/Peur/Fort/12-P-2-5.wav",
    )
    GRAMMAR = re.compile(
        r"(?P<actor>0[1-9]|1[0-2])-(?P<emotion>[CDJNPST])-(?P<intensity>[12])-(?P<sentence>[1-6])\.wav"
    )
    IGNORED = {r"CaFE_192k": "the same at 192 kHz"}  # noqa: RUF012
    EMOBOX_SPEAKERS = ("01 07 08 10", "02 04 09 12", "03 05 06 11")

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """actor, emotion, intensity (1 faible, 2 fort), sentence; odd actors are men."""
        actor = int(match["actor"])
        return self.raw(
            match,
            speaker=match["actor"],
            gender="male" if actor % 2 else "female",
            age=str(_AGES[actor - 1]),
            emotion_native=_EMOTIONS[match["emotion"]],
            transcript=_SENTENCES[int(match["sentence"]) - 1],
        )
