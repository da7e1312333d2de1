"""JL-Corpus: acted New Zealand English, four actors, five primary and five secondary emotions.

Facts: James, Tian & Watson 2018, the README.md, Format_Intro.txt and names of the download on Kaggle, EmoBox 08280f2
(hours, folds).
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_PRIMARY = ("angry", "excited", "happy", "neutral", "sad")
_SECONDARY = ("anxious", "apologetic", "assertive", "concerned", "encouraging")


class JlCorpus(PublicCorpus):
    """The secondary emotions fit no canonical one and stay unlabelled.

    Beside each recording lies a text of the same name with what is said; the secondary emotions have sentences of
    their own (14 and 15). The download also holds a second copy of three recordings, "(1)", and of those that were
    judged in the perception test.
    """

    name = "jl_corpus"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="JL-Corpus",
        languages=("en-NZ",),
        utterances=2400,
        hours=1.41,
        speakers=4,
        emotions=_PRIMARY + _SECONDARY,
        license="CC0 1.0",
        obtain="https://www.kaggle.com/datasets/tli725/jl-corpus",
        citation="James, Tian & Watson, An Open Source Emotional Speech Corpus for Human Robot Interaction"
        " Applications, Interspeech 2018",
        folder="Raw JL corpus (unchecked and unannotated)/JL(wav+txt)/male1_angry_10a_1.wav (and .txt)",
    )
    GRAMMAR = re.compile(
        rf"(?P<speaker>(?P<gender>male|female)[12])_(?P<emotion>{'|'.join(_PRIMARY + _SECONDARY)})"
        r"_(?P<sentence>\d{1,2}[ab])_(?P<session>[12])\.wav"
    )
    IGNORED = {r"\(1\)\.wav$": "the same file again", r"Perception test material": "perception test"}  # noqa: RUF012
    EMOBOX_SPEAKERS = ("male2", "female1", "male1", "female2")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """Keeps the texts by name."""
        self._texts = {path.stem: path for path in source_lib.files(folder, (".txt",))}
        return {}

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """speaker, emotion, sentence (number and which of two repetitions), session."""
        text = self._texts.get(match[0].removesuffix(".wav"))
        return self.raw(
            match,
            speaker=match["speaker"],
            gender=match["gender"],
            emotion_native=match["emotion"],
            transcript=tables.text(text).strip() if text else "",
        )
