"""THAI SER: scripted and improvised dialogues of 200 actors in Thai, rated by three to eight of a crowd.

Facts: Wongpithayadisai et al. 2025 (arXiv 2507.09618), https://github.com/vistec-AI/dataset-releases/releases/tag/v1
(files, counts), https://github.com/vistec-AI/vistec-ser (names, labels; its ten folds are ten recordings each).
"""

import collections
import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import public_corpus, source, tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus


class ThaiSer(PublicCorpus):
    """One microphone of several: the condenser in the studio, the actor's own over Zoom, as the labels name them.

    emotion_native: the majority's. votes: a rater who gave several emotions gives each an equal part of one vote; the
    owners use the utterances on which at least 0.71 of the votes agree.
    """

    name = "thai_ser"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="THAI Speech Emotion Recognition corpus",
        languages=("th",),
        utterances=27_854,
        hours=41.6,
        speakers=200,
        emotions=("Neutral", "Angry", "Happy", "Sad", "Frustrated"),
        license="CC BY-SA 4.0",
        obtain="https://github.com/vistec-AI/dataset-releases/releases/tag/v1 (ten zips and two json files)",
        citation="Wongpithayadisai et al., THAI Speech Emotion Recognition (THAI-SER) corpus, 2025",
        folder="studio1-10.zip or studio001/con/s001_con_actor001_impro1_1.flac, and emotion_label.json",
    )
    UNEXPLAINED = ("None", "Other")
    SUFFIXES = (".flac",)
    GRAMMAR = re.compile(r"(?:s\d{3}_con|z\d{3}_mic)_actor(?P<actor>\d{3})_(?:script|impro)\w+\.flac")
    IGNORED = {r"(^|/)[sz]\d{3}_(?!con_|mic_)[a-z]+_actor": "another microphone"}  # noqa: RUF012

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """Name without ending -> what emotion_label.json has of it; actors' sex and age with it, where they are."""
        path = source.find(folder, "emotion_label.json")
        actors: dict[str, dict[str, Any]] = {}
        if found := source.files(folder, ("actor_demography.json",)):
            actors = {row["Actor's ID"]: row for row in tables.json_of(found[0], dict)["data"]}
        labels = {}
        for name, entries in tables.json_of(path, dict).items():
            try:
                entry = {key: entries[0][key] for key in ("annotated", "majority_emo")}
            except (LookupError, TypeError) as error:
                detail = f"{name}: lacks {error}"
                self.damaged.append(LeftOut(f"{path}: {name}", public_corpus.TABLE_REASON, detail))
                continue
            labels[name.rpartition(".")[0]] = entry | {"actor": actors.get(name.partition("_actor")[2][:3], {})}
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Recording, microphone, actor, script or improvisation, number."""
        entry = self.labels.pop(match[0].removesuffix(".flac"), None)
        if entry is None:
            return public_corpus.UNLABELLED
        heard: collections.Counter = collections.Counter()
        for said in entry["annotated"]:
            heard.update({emotion: round(1 / len(said), 3) for emotion in said})
        actor = entry.get("actor", {})
        return self.raw(
            match,
            speaker=match["actor"],
            gender=str(actor.get("Sex", "")).lower(),
            age=str(actor.get("Age", "")),
            emotion_native=entry["majority_emo"],
            votes=public_corpus.votes(heard),
        )
