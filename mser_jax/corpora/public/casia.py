"""CASIA: acted Mandarin, two men and two women, fifty short sentences in six emotions (the part that is passed on).

Facts: the corpus's own table of sentences (相同的文本201--250.txt, GBK), EmoBox 08280f2 (folds; the same 1,200 files).
Who is a woman is told by the median pitch of the neutral files (230 and 256 Hz against 105 and 125 Hz).
"""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import source as source_lib
from mser_jax.corpora import tables
from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_WOMEN = ("liuchanhg", "zhaoquanyin")


class Casia(PublicCorpus):
    """The same fifty sentences by all; the text comes from the table where that lies by."""

    name = "casia"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="CASIA Chinese emotional speech corpus (1,200 utterances)",
        languages=("zh",),
        utterances=1200,
        hours=0.64,
        speakers=4,
        emotions=("angry", "fear", "happy", "neutral", "sad", "surprise"),
        license="research only",
        obtain="Institute of Automation, Chinese Academy of Sciences, through http://www.chineseldc.org",
        citation="Tao et al., Design of speech corpus for Mandarin text to speech, Blizzard Challenge workshop 2008",
        folder="wangzhe/neutral/239.wav",
    )
    GRAMMAR = re.compile(
        r"(?P<speaker>liuchanhg|wangzhe|zhaoquanyin|zhaozuoxiang)"
        r"/(?P<emotion>angry|fear|happy|neutral|sad|surprise)/(?P<sentence>\d+)\.wav",
        re.IGNORECASE,
    )
    EMOBOX_SPEAKERS = ("wangzhe", "zhaozuoxiang", "liuchanhg", "zhaoquanyin")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """No labels, but the sentences: lines like "201. 就是下雨也去。" in a file whose name ends in their numbers."""
        self._texts = {
            number: "".join(sentence.split())
            for path in source_lib.files(folder, (".txt",))
            if re.search(r"\d{3}-+\d{3}\.txt$", path.name)
            for number, sentence in re.findall(r"^(\d+)\.(.*)$", tables.text(path, "gb18030"), re.MULTILINE)
        }
        return {}

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """speaker / emotion / number of the sentence."""
        speaker = match["speaker"].lower()
        return self.raw(
            id=match[0].lower().removesuffix(".wav"),
            speaker=speaker,
            gender="female" if speaker in _WOMEN else "male",
            emotion_native=match["emotion"].lower(),
            transcript=self._texts.get(match["sentence"], ""),
        )
