"""IEMOCAP: scripted and improvised dialogues of ten actors in English, rated by three listeners each.

Facts: Busso et al. 2008 and the README of the release (files, codes, scales), EmoBox 08280f2 (folds). EmoBox keeps
5,531 of the 10,039 utterances: those that the listeners agreed to call neutral (1,708), angry (1,103), sad (1,084),
happy (595) or excited (1,041, as happy). They are what scores over four classes are taken on; a fold tests a session.
"""

import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import public_corpus, source
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {
    "neu": "neutral",
    "hap": "happiness",
    "sad": "sadness",
    "ang": "anger",
    "exc": "excited",
    "fru": "frustration",
    "fea": "fear",
    "sur": "surprise",
    "dis": "disgust",
    "oth": "other",
    "xxx": "no agreement",
}
# "[6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]"; then a line a rater, as
# "C-E2:	Neutral; Anger;	(a remark)". C-F1 and C-M1 are what the actors say of themselves.
_TURN = re.compile(r"\[[\d. -]+\]\s+(\w+)\s+(\w{3})\s+\[([\d.]+), ([\d.]+), ([\d.]+)\]")
_RATER = re.compile(r"C-E\d+:\s*([^(]*)")
_SAID = re.compile(r"(\w+) \[[\d. -]+\]:\s*(.*)")


class Iemocap(PublicCorpus):
    """All 10,039 utterances; where raters did not agree, or agreed on "other", they stay without a label.

    votes: what the listeners said, several labels each if they did. valence, arousal, dominance: their means, 1 to 5.
    Speakers are told apart by the letter before the number of the utterance; that in front is who wore the markers.
    """

    name = "iemocap"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Interactive Emotional Dyadic Motion Capture database",
        languages=("en",),
        utterances=10_039,
        hours=12.0,
        speakers=10,
        emotions=tuple(_EMOTIONS.values()),
        license="signed release form, research only",
        obtain="https://sail.usc.edu/iemocap/iemocap_release.htm (IEMOCAP_full_release.tar.gz)",
        citation="Busso et al., IEMOCAP: interactive emotional dyadic motion capture database, LREV 2008",
        folder="Session1/sentences/wav/Ses01F_impro04/Ses01F_impro04_F000.wav and Session1/dialog/EmoEvaluation/*.txt",
    )
    GRAMMAR = re.compile(r"(?P<session>Ses0[1-5])[FM]_(?:impro|script)\w+_(?P<gender>[FM])\w*\d\.wav")
    IGNORED = {r"(^|/)dialog/": "whole dialogue"}  # noqa: RUF012

    EMOBOX_SPEAKERS = ("Ses01F Ses01M", "Ses02F Ses02M", "Ses03F Ses03M", "Ses04F Ses04M", "Ses05F Ses05M")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """Utterance -> fields, from the files right in EmoEvaluation (those below it hold one rater each)."""
        labels: dict[str, dict[str, Any]] = {}
        raters: dict[str, list[str]] = {}
        said: dict[str, str] = {}
        for path in source.files(folder, (".txt",)):
            if path.parent.name == "EmoEvaluation":
                for line in _lines(path):
                    if turn := _TURN.match(line):
                        name, code, *scales = turn.groups()
                        valence, arousal, dominance = map(float, scales)
                        labels[name] = {"valence": valence, "arousal": arousal, "dominance": dominance}
                        labels[name]["emotion_native"] = _EMOTIONS[code]
                        raters[name] = []
                    elif rater := _RATER.match(line):
                        raters[name] += [label.strip() for label in rater[1].split(";") if label.strip()]
            elif path.parent.name == "transcriptions":
                said.update(match.groups() for match in map(_SAID.match, _lines(path)) if match)
        if not labels:
            raise FileNotFoundError(
                f"{folder}: no dialog/EmoEvaluation/*.txt in it, so nothing is known of the recordings"
            )
        for name, fields in labels.items():
            fields["votes"] = public_corpus.votes(raters[name])
            # "[LAUGHTER]", "[GARBAGE]": no words.
            fields["transcript"] = " ".join(re.sub(r"\[\w+\]", " ", said.get(name, "")).split())
        return labels

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Session, who wore the markers, dialogue, who speaks, number."""
        fields = self.labels.pop(match[0].removesuffix(".wav"), None)
        if fields is None:
            return public_corpus.UNLABELLED
        gender = {"F": "female", "M": "male"}[match["gender"]]
        return self.raw(match, speaker=match["session"] + match["gender"], gender=gender, **fields)


def _lines(path: epath.Path) -> Iterator[str]:
    yield from path.read_bytes().decode(errors="replace").splitlines()
