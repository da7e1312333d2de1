"""MSP-Podcast: speaking turns from podcasts in English, rated by at least five people each.

Facts: Lotfian & Busso 2019, the readme of release 1.12 of June 2024 (files, counts), public readers of the tables
(columns, codes, the raters' lines), EmoBox 08280f2 (its fold 1 tests Test1). Releases differ in size and in names:
EmoBox used one of 73,042 turns and 1,273 speakers, with "labels_concensus" and a folder "Audio".
"""

import collections
import os
import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import folds, public_corpus, source, tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {
    "A": "angry",
    "S": "sad",
    "H": "happy",
    "U": "surprise",
    "F": "fear",
    "D": "disgust",
    "C": "contempt",
    "N": "neutral",
    "O": "other",
    "X": "no agreement",
}
_SPLITS = {"Train": "train", "Development": "validation", "Validation": "validation"}
_SPLITS |= dict.fromkeys(("Test", "Test1", "Test2", "Test3"), "test")
# EmoBox has no other tests than Test1; they share podcasts and speakers with it.
_FOLDS = {"Test1": 1, "Test": 1, "Test2": folds.UNLISTED, "Test3": folds.UNLISTED}
_COLUMNS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
_SCALE = (1.0, 7.0)


class MspPodcast(PublicCorpus):
    """The split "test" holds Test1, Test2 and (where its labels are there) Test3; `msp_podcast:emobox-1` tests Test1.

    votes: the raters' primary emotions, "Other-…" in one. valence, arousal, dominance: consensus, 1 to 7. Turns
    without labels (of unlabelled test sets) are left out.
    """

    name = "msp_podcast"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="MSP-Podcast corpus (release 1.12)",
        languages=("en",),
        utterances=207_136,
        hours=324.4,
        emotions=tuple(_EMOTIONS.values()),
        license="signed by the institution: academic or commercial",
        obtain="https://lab-msp.com/MSP/MSP-Podcast.html",
        citation="Lotfian & Busso, Building naturalistic emotionally balanced speech corpus by retrieving emotional"
        " speech from existing podcast recordings, IEEE TAC 2019",
        folder="Audios/MSP-PODCAST_0002_0033.wav, Labels/labels_consensus.csv (and labels_detailed.csv), Transcripts",
    )
    # Releases differ by more than a factor of two: the table tells what is missing.
    WHOLE = 0
    GRAMMAR = re.compile(r"MSP-PODCAST_\w+\.wav")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """File name -> row of the consensus, with "votes" and "text" (the path of its transcript)."""
        found = source.files(folder, (".txt", ".csv"))
        # Releases keep the tables of those before them in "Previous_releases_information".
        paths = {path.name: path for path in found if "previous" not in os.fspath(path.relative_to(folder)).lower()}
        consensus = paths.get("labels_consensus.csv") or paths.get("labels_concensus.csv")
        if consensus is None:
            raise FileNotFoundError(f"{folder}: no labels_consensus.csv in it, so nothing is known of the recordings")
        labels: dict[str, Any] = self.keyed(
            tables.rows(consensus, columns=_COLUMNS), lambda row: row.filled("FileName")
        )
        raters: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        if detailed := paths.get("labels_detailed.csv"):
            # MSP-PODCAST_0001_0008.wav,"WORKER00000001; Neutral; Neutral,Concerned; A:4.000; V:4.000; D:4.000;"
            for where, (name, *said) in tables.cells(detailed):
                if name.endswith(".wav") and said and ";" in said[0]:
                    raters[name][said[0].split(";")[1].strip().partition("-")[0]] += 1
                elif name != "FileName":
                    self.damaged.append(LeftOut(where, "table", "expected a file and what a rater said"))
        for name, row in labels.items():
            row["votes"] = public_corpus.votes(raters[name]) if name in raters else ""
            row["text"] = paths.get(name.replace(".wav", ".txt"))
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Podcast and turn; everything else is in the tables."""
        row = self.labels.pop(match[0], None)
        if row is None:
            return public_corpus.UNLABELLED
        speaker, gender = row.filled("SpkrID"), row["Gender"].strip().lower()
        valence, arousal, dominance = (row.number(column, *_SCALE) for column in ("EmoVal", "EmoAct", "EmoDom"))
        return self.raw(
            match,
            speaker="" if speaker.lower() == "unknown" else speaker,
            gender=gender if gender in ("female", "male") else "",
            emotion_native=row.code("EmoClass", _EMOTIONS),
            votes=row["votes"],
            valence=valence,
            arousal=arousal,
            dominance=dominance,
            transcript=tables.text(row["text"]).strip() if row["text"] else "",
            split=row.code("Split_Set", _SPLITS),
            emobox_fold=_FOLDS.get(row["Split_Set"].strip(), 0),
        )
