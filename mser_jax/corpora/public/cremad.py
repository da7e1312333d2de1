"""CREMA-D: acted English, 91 actors, twelve sentences, judged by a crowd.

Facts: https://github.com/CheyneyComputerScience/CREMA-D (README: names, sentences, defects; its csv files), Cao et al.
2014, EmoBox 08280f2 (hours). One name differs in the copy on Kaggle; three recordings are there twice (sha256 of its
Git LFS pointers).
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus, votes

_EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_COLUMNS = {
    "VideoDemographics.csv": ("ActorID", "Age", "Sex"),
    "tabulatedVotes.csv": ("", "A", "D", "F", "H", "N", "S", "fileName"),
}
_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}


class Cremad(PublicCorpus):
    """The label is what the actor was asked for; what those said who only heard the voice is in `votes`.

    Age and gender come from VideoDemographics.csv and votes from processedResults/tabulatedVotes.csv; where the source
    is the folder AudioWAV alone, they stay empty. EmoBox's fold is drawn by file: speakers are in train and test.
    """

    name = "cremad"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Crowd-sourced Emotional Multimodal Actors Dataset",
        languages=("en",),
        utterances=7442,
        hours=5.26,
        speakers=91,
        emotions=tuple(_EMOTIONS.values()),
        license="ODbL 1.0",
        obtain="git lfs clone https://github.com/CheyneyComputerScience/CREMA-D (its zip holds no audio)",
        citation="Cao et al., CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE Trans. Affective"
        " Computing 2014",
        folder="AudioWAV/1001_DFA_ANG_XX.wav (and VideoDemographics.csv, processedResults)",
    )
    GRAMMAR = re.compile(
        rf"(?P<actor>1\d{{3}})_(?P<sentence>{'|'.join(_SENTENCES)})_(?P<emotion>{'|'.join(_EMOTIONS)})_(LO|MD|HI|XX)\.wav"
    )
    CORRECTIONS = {"1040_ITH_SAD_X.wav": "1040_ITH_SAD_XX.wav"}  # noqa: RUF012
    SPEAKERS = tuple(str(actor) for actor in range(1001, 1092))
    IGNORED = {  # noqa: RUF012
        r"1076_MTI_SAD_XX\.wav$": "no sound in it",
        # Byte for byte 1006_TIE_NEU, 1013_WSI_DIS and 1017_IWW_FEA; those who heard either mostly say NEU, DIS and FEA.
        r"(1006_TIE_HAP|1013_WSI_SAD|1017_IWW_ANG)_XX\.wav$": "a recording that has another emotion's name too",
    }

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """Keeps rows of VideoDemographics.csv by actor, and of the votes on the voice alone by file, where they lie."""
        paths = {path.name: path for path in source_lib.files(folder, (".csv",))}
        actors, ballots = (
            tables.rows(paths[name], columns=columns) if name in paths else () for name, columns in _COLUMNS.items()
        )
        self._actors = self.keyed(actors, lambda row: row.filled("ActorID"))
        # The first column numbers the rows: 1….. voice alone, 2….. face alone, 3….. both.
        voice = (row for row in ballots if row[""].startswith("1"))
        self._ballots = self.keyed(voice, lambda row: row["fileName"])
        return {}

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """actor, sentence, emotion, level."""
        actor = self._actors.get(match["actor"], {})
        ballot = self._ballots.get(match[0].removesuffix(".wav"))
        counts = {name: int(ballot.number(name[0].upper(), 0, 1000)) for name in _EMOTIONS.values()} if ballot else {}
        return self.raw(
            match,
            speaker=match["actor"],
            gender=actor.get("Sex", "").lower(),
            age=actor.get("Age", ""),
            emotion_native=_EMOTIONS[match["emotion"]],
            votes=votes({name: count for name, count in counts.items() if count}) if counts else "",
            transcript=_SENTENCES[match["sentence"]],
        )
