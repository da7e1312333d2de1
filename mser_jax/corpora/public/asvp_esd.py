"""ASVP-ESD: emotional speech and sounds from films, shows and the web, in several languages.

Facts: https://zenodo.org/records/7132783 (names, codes), EmoBox 08280f2 (counts; 13,964 files, of them 5,140 speech),
whose meaning of age and language codes is kept; other numbers that occur there stay unknown.
"""

import re

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

_EMOTIONS = {
    "01": "boredom",
    "02": "neutral",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
    "09": "excited",
    "10": "pleasure",
    "11": "pain",
    "12": "disappointment",
    "13": "breath",
}
_AGES = {"01": "65+", "02": "20-64", "03": "0-19", "04": "baby"}
_LANGUAGES = {"01": "zh", "02": "en", "04": "fr"}
UNKNOWN_LANGUAGE, NO_LANGUAGE = "und", "zxx"  # BCP-47


class AsvpEsd(PublicCorpus):
    """The speech alone (channel 01): who trains and tests on speech should not be scored on sobs and laughter. All of
    it, as EmoBox has it, is `asvp_esd_all`.

    Of .3 to 34 s. One has the emotion 17, which no table explains: it stays unlabelled.
    """

    name = "asvp_esd"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Audio, Speech and Vision Processing Lab Emotional Sound database, speech",
        languages=("zh", "en", "fr", UNKNOWN_LANGUAGE),
        utterances=5140,
        hours=8.44,
        speakers=128,
        emotions=tuple(_EMOTIONS.values()),
        license="CC BY 4.0",
        obtain="https://zenodo.org/records/7132783 (ASVP-ESD-Update.zip)",
        citation="Landry et al., ASVP-ESD: a dataset and its benchmark for emotion recognition using both speech and"
        " non-speech utterances, Global Scientific Journals 2020",
        folder="Audio/actor_36/03-01-09-01-06-36-02-02-01-39.wav",
    )
    # Some end after the source, some have a take or a similarity after the language.
    GRAMMAR = re.compile(
        r"03-(?P<channel>0[12])-(?P<emotion>\d\d)-\d+-\d+-(?P<actor>\d+)-(?P<age>\d+)-\d+"
        r"(-(?P<language>\d+)( ?-\d+)*)?\.wav"
    )
    UNEXPLAINED = ("17",)
    IGNORED = {r"(^|/)03-02-[-\d ]+\.wav$": "not speech"}  # noqa: RUF012

    def utterance(self, match: re.Match[str]) -> RawUtterance:
        """modality–channel–emotion–intensity–statement–actor–age–source(–language–…); even actors are men."""
        actor = int(match["actor"])  # "07" and "7" are one
        language = _LANGUAGES.get(match["language"], UNKNOWN_LANGUAGE) if match["channel"] == "01" else NO_LANGUAGE
        return self.raw(
            match,
            language=language,
            speaker=str(actor) if actor else "",  # 0 is anybody
            gender=("female" if actor % 2 else "male") if actor else "",
            age=_AGES.get(match["age"], ""),
            emotion_native=_EMOTIONS.get(match["emotion"], match["emotion"]),
        )
