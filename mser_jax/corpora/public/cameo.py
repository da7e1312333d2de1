"""CAMEO: thirteen emotional corpora of eight languages in one schema, 16 kHz, as parquet.

Facts: Christop & Czajka 2025 (https://arxiv.org/abs/2505.11051) and https://huggingface.co/datasets/amu-cai/CAMEO
(columns file_id, audio, emotion, transcription, speaker_id, gender, age, dataset, language, license; a file or more a
corpus, data/crema_d-00000-of-00001.parquet).
"""

import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet
import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import public, registry, source, tables
from mser_jax.corpora.builder import SPLITS, LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import TABLE_REASON, Facts, PublicCorpus

_LANGUAGES = {
    "bengali": "bn",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "russian": "ru",
    "spanish": "es",
}
_COLUMNS = ("file_id", "audio", "emotion", "transcription", "speaker_id", "gender", "dataset", "language")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.parquet")
# Rows that are in memory at a time: row groups of such files are up to a gigabyte.
_ROWS = 32


class Cameo(PublicCorpus):
    """`corpus`, language and speaker are the original corpus's: a model that saw RAVDESS saw this part of CAMEO."""

    name = "cameo"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="CAMEO: Collection of Multilingual Emotional Speech Corpora",
        languages=("bn", "en", "fr", "de", "it", "pl", "ru", "es"),
        emotions=("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "…"),
        license="CC BY-NC-SA 4.0; that of each corpus in its records",
        obtain="https://huggingface.co/datasets/amu-cai/CAMEO",
        citation="Christop & Czajka, CAMEO: Collection of Multilingual Emotional Speech Corpora, 2025",
        folder="data/crema_d-00000-of-00001.parquet",
    )

    def read(self, folder: epath.Path) -> Iterator[RawUtterance | LeftOut]:
        """Every row of every parquet file, some rows at a time."""
        paths = source.files(folder, (".parquet",))
        self._found.absent += _lacking(path.name for path in paths)
        self._refuse_a_part(self._found)
        for path in paths:
            name = re.match(r"[A-Za-z_]*", path.name)[0].rstrip("_-")
            split = name if name in SPLITS else ""
            with path.open("rb") as stream:
                yield from (self._checked(row, split, path.name) for row in self._rows(path, stream))

    def _rows(self, path: epath.Path, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
        try:
            file = pyarrow.parquet.ParquetFile(stream)
            if missing := set(_COLUMNS) - set(file.schema_arrow.names):
                raise tables.TableError(f"{path}: no columns {sorted(missing)}; expected those of {self.FACTS.obtain}")
            for batch in file.iter_batches(batch_size=_ROWS):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise tables.TableError(f"{path}: damaged ({' '.join(str(error).split())}). Download it again") from error

    def _checked(self, row: dict[str, Any], split: str, file: str) -> RawUtterance | LeftOut:
        """`_row`; what lacks a text that it needs is left out."""
        lacking = [
            name for name in ("emotion", "dataset", "language") if not (row[name] and isinstance(row[name], str))
        ]
        if lacking or not isinstance(row["audio"], dict | None):
            return LeftOut(f"{file}: {row['file_id']}", TABLE_REASON, f"no text in {lacking}, or no bytes in 'audio'")
        return self._row(row, split, file)

    def _row(self, row: dict[str, Any], split: str, file: str) -> RawUtterance | LeftOut:
        corpus = _ours(row["dataset"])
        facts = registry.corpus_class(corpus).FACTS if corpus in public.NAMES else None
        language = row["language"].strip()
        code = _LANGUAGES.get(language.casefold(), language)
        # Ours may be more exact (fr-CA), where CAMEO's is the same language.
        exact = [tag for tag in facts.languages if tag.partition("-")[0] == code] if facts else []
        file_id = str(row["file_id"]).removesuffix(".wav")
        sound = (row["audio"] or {}).get("bytes")
        if not sound:
            return LeftOut(f"{file}: {file_id}", "empty", "no bytes in the column audio")
        return self.raw(
            id=f"{corpus}/{file_id}",
            audio=sound,
            corpus=corpus,
            language=exact[0] if exact else code,
            speaker=str(row["speaker_id"] or "").strip(),
            gender=str(row["gender"] or "").strip().lower(),
            age=str(row.get("age") or "").strip(),
            emotion_native=row["emotion"],
            transcript=row["transcription"] or "",
            split=split,
            license=str(row.get("license") or self.FACTS.license),
            origin=f"{file}: {file_id}",
        )


def _lacking(names: Iterable[str]) -> list[str]:
    """Of files like "a-00000-of-00002.parquet", those that are not there."""
    parts = {match.groups() for match in map(_PART.fullmatch, names) if match}
    wanted = {(name, f"{n:05}", of) for name, _, of in parts for n in range(int(of))}
    return [f"no {name}-{number}-of-{of}.parquet" for name, number, of in sorted(wanted - parts)]


def _ours(dataset: str) -> str:
    """ "CREMA-D" -> "cremad", "Oréau" -> "oreau"; another corpus's name as it is, in lower case."""
    plain = re.sub(r"[\W_]", "", dataset.casefold().replace("é", "e"))
    return next((name for name in public.NAMES if name.replace("_", "") == plain), plain)
