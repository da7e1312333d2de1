"""EmoBox: the lists of a benchmark of 32 sets, as an index over recordings that you have.

Facts: Ma et al. 2024 and https://github.com/emo-box/EmoBox at 08280f2 (data/NAME: lists, label maps, folds).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import audio_check, completeness, emobox_lists, emotions, folds, public, registry
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus

# What there is no builder of: (language, licence).
_OTHERS = {"emns": ("en", "Apache 2.0"), "polish": ("pl", "not stated")}


@dataclasses.dataclass(eq=False)
class EmoboxConfig(tfds.core.BuilderConfig):
    """TFDS config of one of its sets, under EmoBox's name for it."""

    corpus: str = ""


class Emobox(PublicCorpus):
    """`emobox:NAME`, or `emobox:NAME:emobox-2` with a fold: the utterances, labels and folds that EmoBox lists.

    The source is a clone of EmoBox with downloads/ in it; or the recordings, with the clone as `emobox`. Speaker,
    gender and words come from the builder of NAME where its names of files tell them. Emotions are EmoBox's words, but
    where it folded another state into one (IEMOCAP's exc) the corpus's own, so that the merge is counted.
    """

    name = "emobox"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="EmoBox: lists over 32 sets",
        languages=("am", "bn", "de", "el", "en", "es", "fa", "fr", "it", "pl", "ru", "tr", "ur", "zh"),
        emotions=("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise", "…"),
        license="that of each set",
        obtain="git clone https://github.com/emo-box/EmoBox, and the recordings of the set from their owners",
        citation="Ma et al., EmoBox: Multilingual Multi-corpus Speech Emotion Recognition Toolkit and Benchmark, 2024",
        folder="data/NAME/fold_1/NAME_test_fold_1.jsonl and downloads/NAME, or --source=RECORDINGS --emobox=CLONE",
    )

    @classmethod
    def from_argument(
        cls, argument: str, data_dir: str = "", source: str = "", emobox: str = "", allow_partial: bool = False
    ) -> "Emobox":
        """Builder for "NAME" or "NAME:FOLD", NAME as here or as in EmoBox.

        Raises:
          ValueError: no name, or no fold.
        """
        name, _, fold = argument.partition(":")
        if not name:
            raise ValueError("corpus 'emobox' is an index over another: emobox:NAME, e.g. emobox:ravdess")
        corpus = emobox_lists.folder_of(name)
        config = EmoboxConfig(name=corpus, version=cls.VERSION, corpus=corpus)
        where = {"source": source, "emobox": emobox or source, "data_dir": data_dir or None}
        return cls(config=config, allow_partial=allow_partial, fold=folds.parse(fold) if fold else None, **where)

    @property
    def short_name(self) -> str:
        """EmoBox and its name of the set."""
        return f"emobox_{self.builder_config.corpus}"

    def how_to_get(self) -> str:
        """See PublicCorpus.how_to_get."""
        return super().how_to_get().replace(".py emobox ", f".py emobox:{self.builder_config.corpus} ")

    def expected_count(self) -> int:
        """Unknown: the lists are read once the build starts."""
        return 0

    def whole(self) -> completeness.Whole:
        """As many as EmoBox lists."""
        return completeness.Whole(len(self._lists.entries) if self._lists else 0)

    def lists_of(self) -> str:
        """See PublicCorpus.lists_of."""
        return self.builder_config.corpus

    def read(self, folder: epath.Path) -> Iterator[RawUtterance | LeftOut]:
        """Every entry of the lists, in their order."""
        corpus = self.builder_config.corpus
        recordings = next(path for path in (folder / "downloads" / corpus, folder / corpus, folder) if path.exists())
        ours = next((name for name in public.NAMES if emobox_lists.folder_of(name) == corpus), "")
        builder = registry.corpus_class(ours)(data_dir=self._data_dir_root) if ours else None
        if builder:
            _learn(builder, recordings)
        language, license_ = _OTHERS.get(corpus, ("und", ""))
        for entry in self._lists.entries.values():
            raw = builder and _by_name(builder, entry.path)
            if raw is None:
                facts = builder and builder.FACTS
                raw = RawUtterance(
                    id="", audio=b"", corpus=ours or corpus, speaker="",
                    language=facts.languages[0] if facts else language, license=facts.license if facts else license_,
                )  # fmt: skip
            try:
                sound = _sound(recordings, entry)
            except audio_check.BadAudio as bad:
                yield LeftOut(entry.path, str(bad.reason), bad.detail)
                continue
            word = str(self._lists.labels.get(entry.emotion, entry.emotion))
            merged = emotions.canonical(entry.emotion)[1] is not None
            yield dataclasses.replace(
                raw, id=entry.name, origin=entry.path, emotion_native=entry.emotion if merged else word,
                emotion=None, votes="", split=entry.split if self._is_official else "", **sound,
            )  # fmt: skip

    @property
    def _is_official(self) -> bool:
        """Whether EmoBox's fold 1 has a validation part: then it is the split that the owners published."""
        return any(entry.split == "validation" for entry in self._lists.entries.values())


def _sound(recordings: epath.Path, entry: emobox_lists.Entry) -> dict[str, object]:
    """audio and sampling_rate of an entry: its file, or what is cut out of it."""
    path = recordings / entry.path
    if not entry.end or not path.exists():
        return {"audio": path}
    samples, rate = audio_check.excerpt(path, entry.start, entry.end)
    return {"audio": samples, "sampling_rate": rate}


def _learn(builder: PublicCorpus, folder: epath.Path) -> None:
    """Reads the corpus's tables where they are in `folder`, for `_by_name`."""
    builder.labels = _Blank()
    with contextlib.suppress(FileNotFoundError):
        builder.labels = builder.read_labels(folder) or builder.labels


def _by_name(builder: PublicCorpus, path: str) -> RawUtterance | None:
    """What a recording's name, and the tables that `_learn` found, say of it; None where nothing. No `audio`."""
    match = builder.match(path)[0] if hasattr(builder, "GRAMMAR") else None
    # Where the tables are not there, `utterance` may lack what they would have said.
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        raw = match and builder.utterance(match)
        return raw if isinstance(raw, RawUtterance) else None
    return None


class _Blank(dict[Any, Any]):
    """A table of labels that has a row for everything, in which nothing stands."""

    def pop(self, *key: Any) -> Any:
        return _Blank()

    def get(self, key: Any, default: Any = None) -> Any:
        return default

    def __missing__(self, key: Any) -> str:
        return ""
