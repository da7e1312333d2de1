"""M3ED: dialogues of two from 56 television series in Chinese, rated by three people each.

Facts: Zhao et al. 2022 and https://github.com/AIM3-RUC/RUCM3ED (annotation, split), EmoBox 08280f2 (files; its only
fold is the official split, `m3ed:official`, less a dozen utterances).
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import public_corpus, source, tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def _fields(series: str, speakers: dict[str, Any], said: dict[str, Any]) -> dict[str, str]:
    """What the annotation says of an utterance. Raises LookupError and the like where it lacks something."""
    who, heard = speakers[said["Speaker"]], said["EmoAnnotation"]
    raters = ",".join(heard.get(f"EmoAnnotator{number}") or "" for number in (1, 2, 3)).split(",")
    return {
        "speaker": f"{series}_{who['Name']}",
        "gender": who["Gender"] if who["Gender"] in ("female", "male") else "",
        "emotion_native": heard["final_main_emo"],
        "votes": public_corpus.votes(label.strip() for label in raters if label.strip()),
        "transcript": said["Text"],
    }


class M3ed(PublicCorpus):
    """The label is the main emotion; votes count every emotion of every rater (one may give several)."""

    name = "m3ed"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Multi-modal Multi-scene Multi-label Emotional Dialogue database",
        languages=("zh",),
        utterances=24_449,
        speakers=626,
        emotions=("Happy", "Neutral", "Sad", "Disgust", "Anger", "Fear", "Surprise"),
        license="research (annotations are on GitHub; the sound is of television series)",
        obtain="https://github.com/AIM3-RUC/RUCM3ED (annotation.json, splitInfo, link to the audio clips)",
        citation="Zhao et al., M3ED: Multi-modal Multi-scene Multi-label Emotional Dialogue Database, ACL 2022",
        folder="modality_speech/A_rucikeaidewomen_1_1.wav, annotation.json and splitInfo/movie_list_*.txt",
    )
    GRAMMAR = re.compile(r"[A-Z]_(?P<utterance>\w+_\d+_\d+)\.wav")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """Utterance, as "rucikeaidewomen_1_1" -> fields."""
        split_of = {
            series: split
            for part, split in _SPLITS.items()
            for series in tables.text(source.find(folder, f"splitInfo/movie_list_{part}.txt")).split()
        }
        labels: dict[str, Any] = {}
        path = source.find(folder, "annotation.json")
        for series, dialogues in tables.json_of(path, dict).items():
            for number, dialogue in dialogues.items():
                for name, said in dialogue["Dialog"].items():
                    try:
                        fields = _fields(series, dialogue["SpeakerInfo"], said) | {"split": split_of[series]}
                    except (LookupError, TypeError, AttributeError) as error:
                        detail = f"{series}, {number}, {name}: lacks {error}"
                        self.damaged.append(LeftOut(f"{path}: {name}", public_corpus.TABLE_REASON, detail))
                        continue
                    labels[name] = fields
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Speaker of the dialogue (A or B), series, dialogue, utterance."""
        fields = self.labels.pop(match["utterance"], None)
        return public_corpus.UNLABELLED if fields is None else self.raw(match, **fields)
