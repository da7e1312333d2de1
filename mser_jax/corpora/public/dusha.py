"""Dusha, its acted half ("crowd"): commands and remarks to a voice assistant in Russian, rated by a crowd.

Facts: Kondratenko et al. 2022 (arXiv 2212.12266) and https://github.com/salute-developers/golos/tree/master/dusha
(files, columns, counts, how labels are aggregated). The other half ("podcast") has no sound, only features.
"""

import collections
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import public_corpus, rater_model, source, tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

# Of these the crowd's have sound.
_PARTS = ("crowd_train", "crowd_test", "podcast_train", "podcast_test")
_COLUMNS = ("hash_id", "annotator_id", "annotator_emo", "source_id", "speaker_text")
AGREEMENT = 0.9


class Dusha(PublicCorpus):
    """votes: what the raters heard. The label is made as the owners make it, by Dawid and Skene's model over all votes,
    and is none where that is less than AGREEMENT sure. They take the podcasts' votes, too: put podcast.tar into the
    source beside crowd.tar. What the speaker was asked to play is not used.
    """

    name = "dusha"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Dusha, crowd part",
        languages=("ru",),
        utterances=201_850,
        hours=255.7,
        speakers=2068,
        emotions=("neutral", "positive", "sad", "angry", "other"),
        license="Sber's public licence with attribution and conditions reserved",
        obtain="https://github.com/salute-developers/golos/tree/master/dusha (crowd.tar)",
        citation="Kondratenko et al., Large Raw Emotional Dataset with Aggregation Mechanism, 2022",
        folder="crowd_train/raw_crowd_train.tsv, crowd_train/wavs/*.wav and the same of crowd_test",
    )
    GRAMMAR = re.compile(r"crowd_(?P<part>train|test)/wavs/(?P<id>\w+)\.wav")
    UNEXPLAINED = ("no agreement",)
    IGNORED = {r"(^|/)podcast_": "podcast"}  # noqa: RUF012

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """ "crowd_train/wavs/ID" -> fields. A million votes are read line by line."""
        paths = {path.name: path for path in source.files(folder, (".tsv",))}
        heard: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        columns: list[dict[str, int]] = [{}, {}, {}]  # item, rater, label -> number
        voted: list[list[int]] = [[], [], []]
        labels: dict[str, Any] = {}
        for part in _PARTS:
            if f"raw_{part}.tsv" not in paths:
                if part.startswith("podcast"):
                    continue
                raise FileNotFoundError(f"{folder}: no raw_{part}.tsv in it; give the folder that crowd.tar unpacks to")
            wanted = _COLUMNS if part.startswith("crowd") else _COLUMNS[:3]
            for row in tables.rows(paths[f"raw_{part}.tsv"], "\t", wanted):
                item, label = f"{part}/wavs/{row['hash_id']}", row["annotator_emo"].strip()
                if label not in self.FACTS.emotions:  # it would become an emotion of its own
                    detail = f"column 'annotator_emo': unknown label {label!r}"
                    self.damaged.append(LeftOut(row.where, "table", detail, on_purpose=label in ("", "NaN")))
                    continue
                heard[item][label] += 1
                for numbers, votes, name in zip(columns, voted, (item, row["annotator_id"], label), strict=True):
                    votes.append(numbers.setdefault(name, len(numbers)))
                if part.startswith("crowd"):
                    labels[item] = {"speaker": _known(row["source_id"]), "transcript": _known(row["speaker_text"])}
        truth = rater_model.dawid_skene(*map(np.array, voted))
        names = list(columns[2])
        for item, fields in labels.items():
            sure = truth[columns[0][item]]
            fields["emotion_native"] = names[sure.argmax()] if sure.max() >= AGREEMENT else "no agreement"
            fields["votes"] = public_corpus.votes(heard[item])
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Part and hash."""
        fields = self.labels.pop(match[0].removesuffix(".wav"), None)
        if fields is None:
            return public_corpus.UNLABELLED
        return self.raw(match, split=match["part"], **fields)


def _known(text: str) -> str:
    return "" if text == "NaN" else text
