"""MELD: utterances of the television series Friends, cut from its sound track, in English.

Facts: Poria et al. 2019 and https://github.com/declare-lab/MELD (tables, counts; issues 9, 20, 22, 39: defects), EmoBox
08280f2 (lengths). EmoBox's only fold is the official split: `meld:official`. Most clips have 5.1 channels.
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import public_corpus, source, tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

# Folder of the clips -> (its table, split).
_PARTS = {
    "train_splits": ("train_sent_emo.csv", "train"),
    "dev_splits_complete": ("dev_sent_emo.csv", "validation"),
    "output_repeated_splits_test": ("test_sent_emo.csv", "test"),
}
_COLUMNS = ("Dialogue_ID", "Utterance_ID", "Speaker", "Emotion", "Utterance")
# The leading roles; nobody wrote down the others' genders.
_GENDERS = dict.fromkeys(("Monica", "Phoebe", "Rachel"), "female") | dict.fromkeys(("Chandler", "Joey", "Ross"), "male")
# Windows-1252 punctuation that was taken for Latin-1.
_PUNCTUATION = str.maketrans("\x85\x91\x92\x93\x94\x96\x97", "…‘’“”–—")


class Meld(PublicCorpus):
    """Two test clips are minutes long for one sentence and are left out by name; dev has no clip dia110_utt7, and
    train's dia125_utt3 is no video: two are always skipped, and fourteen more are shorter than 0.1 s.

    Speakers are the roles by name, of which a few ("Woman", "All") are different people in every episode.
    """

    name = "meld"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Multimodal EmotionLines Dataset",
        languages=("en",),
        utterances=13_708,
        hours=12.14,
        speakers=304,
        emotions=("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear"),
        license="GPL-3.0 (annotations; the sound is of a television series)",
        obtain="http://web.eecs.umich.edu/~mihalcea/downloads/MELD.Raw.tar.gz",
        citation="Poria et al., MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations, 2019",
        folder="train_splits/dia0_utt0.mp4, dev_splits_complete, output_repeated_splits_test and three *_sent_emo.csv",
    )
    SUFFIXES = (".mp4",)
    GRAMMAR = re.compile(rf"(?P<part>{'|'.join(_PARTS)})/dia\d+_utt\d+\.mp4")
    IGNORED = {  # noqa: RUF012
        r"final_videos_test": "the same clip under another name",
        r"splits_test/(dia38_utt4|dia220_utt0)\.mp4$": "wrongly cut: minutes of sound for one sentence",
    }

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """Clip, as "train_splits/dia0_utt0" -> row of its table."""
        labels = {}
        for part, (table, _) in _PARTS.items():
            rows = tables.rows(source.find(folder, table), columns=_COLUMNS)
            clips = self.keyed(rows, lambda row: f"dia{row.filled('Dialogue_ID')}_utt{row.filled('Utterance_ID')}")
            labels |= {f"{part}/{clip}": row for clip, row in clips.items()}
        for name in list(labels):
            if self._ignored(f"{name}.mp4"):
                del labels[name]
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Part, dialogue, utterance."""
        row = self.labels.pop(match[0].removesuffix(".mp4"), None)
        if row is None:
            return public_corpus.UNLABELLED
        return self.raw(
            match,
            speaker=row.filled("Speaker"),
            gender=_GENDERS.get(row["Speaker"], ""),
            emotion_native=self.label(row, "Emotion"),
            transcript=row["Utterance"].translate(_PUNCTUATION),
            split=_PARTS[match["part"]][1],
        )
