"""RESD: Russian dialogues in which each of two actors was given an emotion.

Facts: https://huggingface.co/datasets/Aniemore/resd (tables, split), EmoBox 08280f2 (names, counts).
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus


class Resd(PublicCorpus):
    """Labels and the official split come from train.csv and test.csv (columns path, emotion, and text in the annotated
    edition).

    Who speaks is not published: `speaker` is the part in a dialogue ("32_h": happiness in number 32), and an actor may
    play several. All fifty dialogues are in the official train and test, which EmoBox uses too.
    """

    name = "resd"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Russian Emotional Speech Dialogs",
        languages=("ru",),
        utterances=1396,
        hours=2.34,
        emotions=("anger", "disgust", "enthusiasm", "fear", "happiness", "neutral", "sadness"),
        license="MIT",
        obtain="https://huggingface.co/datasets/Aniemore/resd",
        citation="Amentes, Lubenets & Davidchuk, Aniemore: open library of emotion recognition, 2022",
        folder="train.csv, test.csv and train/happiness_enthusiasm_32/32_happiness_enthusiasm_h_120.wav",
    )
    GRAMMAR = re.compile(r"(?P<dialogue>\d\d)_[a-z]+_[a-z]+[_ ](?P<part>[adefhns])_\d+\.wav")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """File name -> row of the table it stands in, and the split."""
        labels: dict[str, Any] = {}
        for split in ("train", "test"):
            rows = tables.rows(source_lib.find(folder, f"{split}.csv"), columns=("path", "emotion"))
            found = self.keyed(rows, lambda row: row["path"].replace("\\", "/").rpartition("/")[2])
            for name, row in found.items():
                if name in labels:
                    self.damaged.append(LeftOut(row.where, "table", f"{name!r} is in {labels[name][0].where}, too"))
                else:
                    labels[name] = row, split
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """dialogue, its two emotions, the first letter of the one that is heard, number."""
        row, split = self.labels.pop(match[0], (None, ""))
        if row is None:
            return LeftOut(match[0], "no label", "neither in train.csv nor in test.csv")
        return self.raw(
            match,
            speaker=f"{match['dialogue']}_{match['part']}",
            emotion_native=self.label(row, "emotion"),
            transcript=row.get("text") or "",
            split=split,
            emobox_fold=int(split == "test"),
        )
