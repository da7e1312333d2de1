"""Dusha, its acted half ("crowd"): commands and remarks to a voice assistant in Russian, rated by a crowd.

Facts: Kondratenko et al. 2022 (arXiv 2212.12266) and https://github.com/salute-developers/golos/tree/master/dusha
(files, columns, counts, how labels are aggregated). The other half ("podcast") has no sound, only features.
"""

import collections
import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import public_corpus, source
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_PARTS = ("crowd_train", "crowd_test")


class Dusha(PublicCorpus):
    """votes: what the raters heard. The label is the owners' aggregate (Dawid and Skene's, of at least 0.9) where their
    aggregated_dataset/crowd_{train,test}.tsv lies in the source, too; an utterance that is not in it has none. Without
    it the label is what more than half of the raters heard. The speaker's own intention is not used.
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
    IGNORED = {r"(^|/)podcast_": "podcast"}  # noqa: RUF012

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """ "crowd_train/wavs/ID" -> fields. Millions of votes are read line by line."""
        tables = {path.name: path for path in source.files(folder, (".tsv",))}
        labels: dict[str, Any] = {}
        for part in _PARTS:
            if f"raw_{part}.tsv" not in tables:
                raise FileNotFoundError(f"{folder}: no raw_{part}.tsv in it; give the folder that crowd.tar unpacks to")
            raters: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
            speakers: dict[str, tuple[str, str]] = {}
            for row in source.rows(tables[f"raw_{part}.tsv"], "\t"):
                raters[row["hash_id"]][row["annotator_emo"]] += 1
                speakers[row["hash_id"]] = _known(row["source_id"]), _known(row["speaker_text"])
            aggregate = tables.get(f"{part}.tsv")
            agreed = {row["hash_id"]: row["emotion"] for row in source.rows(aggregate, "\t")} if aggregate else None
            for name, heard in raters.items():
                label = _majority(heard) if agreed is None else agreed.get(name, "no agreement")
                labels[f"{part}/wavs/{name}"] = {
                    "emotion_native": label,
                    "votes": public_corpus.votes(heard),
                    "speaker": speakers[name][0],
                    "transcript": speakers[name][1],
                }
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Part and hash."""
        fields = self.labels.pop(match[0].removesuffix(".wav"), None)
        if fields is None:
            return public_corpus.UNLABELLED
        return self.raw(match, split=match["part"], **fields)


def _majority(heard: collections.Counter) -> str:
    label, votes = heard.most_common(1)[0]
    return label if 2 * votes > heard.total() else "no agreement"


def _known(text: str) -> str:
    return "" if text == "NaN" else text
