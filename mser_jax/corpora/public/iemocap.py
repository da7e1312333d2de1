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
# "C-E2:	Neutral; Anger;	(a remark)", to the next empty line. C-F1 and C-M1 are what the actors say of themselves.
_NUMBER = r"\d+(?:\.\d+)?"
_TURN = re.compile(rf"\[[\d. -]+\]\s+(\w+)\s+(\w{{3}})\s+\[({_NUMBER}), ({_NUMBER}), ({_NUMBER})\]")
_RATER = re.compile(r"C-E\d+:\s*([^(]*)")
_BEGINS = re.compile(r"\[|.*\bSes0\d[FM]_\w+\s")  # a turn, also a damaged one
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
        said: dict[str, str] = {}
        for path in source.files(folder, (".txt",)):
            if path.parent.name == "EmoEvaluation":
                self._read_turns(path, labels)
            elif path.parent.name == "transcriptions":
                said.update(match.groups() for match in map(_SAID.match, _lines(path)) if match)
        if not labels:
            raise FileNotFoundError(
                f"{folder}: no dialog/EmoEvaluation/*.txt in it, so nothing is known of the recordings"
            )
        for name, fields in labels.items():
            fields["votes"] = public_corpus.votes(fields["votes"])
            # "[LAUGHTER]", "[GARBAGE]": no words.
            fields["transcript"] = " ".join(re.sub(r"\[\w+\]", " ", said.get(name, "")).split())
        return labels

    def _read_turns(self, path: epath.Path, labels: dict[str, dict[str, Any]]) -> None:
        """Adds the turns of a file to `labels`; one that is not as it should be, to the last of its lines, to
        `damaged`, so that what raters said of it is nobody else's.
        """
        fields: dict[str, Any] | None = None
        for number, line in enumerate((line.strip() for line in _lines(path)), start=1):
            where = f"{source.readable(path)}, line {number}"
            if not line:
                fields = None
            elif _BEGINS.match(line):
                turn, fields = _TURN.match(line), None
                if turn is None or turn[2] not in _EMOTIONS or turn[1] in labels:
                    why = "is there twice" if turn and turn[1] in labels else "expected [time] name code [V, A, D]"
                    self.damaged.append(LeftOut(where, public_corpus.TABLE_REASON, f"{line[:80]!r}: {why}"))
                    labels.pop(turn[1] if turn else "", None)
                    continue
                valence, arousal, dominance = map(float, turn.groups()[2:])
                fields = {"valence": valence, "arousal": arousal, "dominance": dominance, "votes": []}
                labels[turn[1]] = fields | {"emotion_native": _EMOTIONS[turn[2]]}
            elif line.startswith("C-E"):
                rater = _RATER.match(line)
                if rater is None or fields is None:
                    why = "of no turn" if rater else "expected C-E1: label; label; (remark)"
                    self.damaged.append(LeftOut(where, public_corpus.TABLE_REASON, f"{line[:80]!r}: {why}"))
                else:
                    fields["votes"] += [label.strip() for label in rater[1].split(";") if label.strip()]

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """Session, who wore the markers, dialogue, who speaks, number."""
        fields = self.labels.pop(match[0].removesuffix(".wav"), None)
        if fields is None:
            return public_corpus.UNLABELLED
        gender = {"F": "female", "M": "male"}[match["gender"]]
        return self.raw(match, speaker=match["session"] + match["gender"], gender=gender, **fields)


def _lines(path: epath.Path) -> Iterator[str]:
    yield from path.read_bytes().decode(errors="replace").splitlines()
