"""Readers of sentence collections: every one yields `Text`s as they stand in the files, before any filter.

A label of the words becomes `content`: a canonical emotion or "neutral" where one label alone was given, "" where
there are several, none is known, or it has no canonical emotion. The words never decide how a sentence is spoken.
"""

from __future__ import annotations

import collections
import csv
import difflib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow.parquet
from etils import epath

from mser_jax import storage
from mser_jax.corpora import emotions
from mser_jax.m5ser import texts as sentences_lib
from mser_jax.m5ser.lines import Text

# XED (Öhman et al., COLING 2020; https://github.com/Helsinki-NLP/XED): Plutchik's eight; no canonical emotion for
# anticipation (2) and trust (8). Neutral is 0 in the projections, 9 in neu_en.txt.
_XED_LABELS = {"1": "anger", "3": "disgust", "4": "fear", "5": "joy", "6": "sadness", "7": "surprise",
               "0": "neutral", "9": "neutral"}  # fmt: skip
_XED_LINE = re.compile(r"(?P<text>[^\t]*[^\t\s])\s*\t\s*(?P<labels>[0-9](?:\s*,\s*[0-9])*)\s*")
_XED_NEUTRAL = re.compile(r"(?P<labels>[09])\t(?P<text>[^\t]*[^\t\s])\s*")
_XED_LANGUAGES = {"cn": "zh", "zh": "zh-Hant"}  # `cn` is simplified Chinese there, `zh` traditional

# BRIGHTER (Muhammad et al., ACL 2025; SemEval-2025 task 11): its configurations (ISO 639-3, mostly) and BCP-47.
_BRIGHTER_CODES = """
    afr=af amh=am arq=ar-DZ ary=ar-MA chn=zh deu=de eng=en esp=es hau=ha hin=hi ibo=ig ind=id jav=jv kin=rw mar=mr
    orm=om pcm=pcm ptbr=pt-BR ptmz=pt-MZ ron=ro rus=ru som=so sun=su swa=sw swe=sv tat=tt tir=ti ukr=uk vmw=vmw xho=xh
    yor=yo zul=zu
"""
_BRIGHTER_LANGUAGES = dict(pair.split("=") for pair in _BRIGHTER_CODES.split())
_BRIGHTER_EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")

# GoEmotions (Demszky et al., ACL 2020): data/emotions.txt in its order, and data/ekman_mapping.json.
_EMOTIONS_TXT = """
    admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval disgust
    embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief remorse sadness
    surprise neutral
"""
_GOEMOTIONS = _EMOTIONS_TXT.split()
_EKMAN = {
    "anger": "anger annoyance disapproval",
    "disgust": "disgust",
    "fear": "fear nervousness",
    "joy": "joy amusement approval excitement gratitude love optimism relief pride admiration desire caring",
    "sadness": "sadness disappointment embarrassment grief remorse",
    "surprise": "surprise realization confusion curiosity",
    "neutral": "neutral",
}
_EKMAN_OF = {fine: coarse for coarse, names in _EKMAN.items() for fine in names.split()}


def read(spec: str, languages: Sequence[str]) -> Iterator[Text]:
    """Texts of "reader" or "reader:PATH" in `languages` (BCP-47), in the order of the files.

    Raises:
      ValueError: no such reader (nearest one named), a path missing or given where none belongs, or a file that is
        not in the collection's format (with file, line and what was expected).
      FileNotFoundError: the path, or what the reader looks for in it, is not there.
    """
    name, _, path = spec.partition(":")
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no reader {name!r} of texts.{hint} There are {', '.join(READERS)}")
    if bool(path) == (name == "sentences"):
        expected = "just 'sentences'" if name == "sentences" else f"'{name}:PATH'"
        raise ValueError(f"texts {spec!r}: expected {expected}")
    for text in READERS[name](storage.absolute(path) if path else None):
        if text.language in languages:
            yield text


def read_sentences(_path: epath.Path | None = None) -> Iterator[Text]:
    """The project's own sentences, the same in every language (m5ser/sentences.tsv)."""
    for sentence in sentences_lib.load_sentences():
        for language, text in sentence.texts.items():
            yield Text(
                id=f"sentences-{sentence.id}-{language}", text=text, language=language, content=sentence.content,
                parallel_id=sentence.id, source="sentences", license="Apache-2.0 (mser_jax authors)",
            )  # fmt: skip


def read_xed(folder: epath.Path) -> Iterator[Text]:
    """XED's LANG-projections.tsv, en-annotated.tsv and neu_LANG.txt as its repository has them.

    A line is `sentence<TAB>label[, label …]`, in neu_*.txt `label<TAB>sentence`. The projections hold a few hundred
    lines that are the middle or end of a quoted record, without label or with more columns: passed over.
    """
    files = sorted([*folder.glob("*-projections.tsv"), *folder.glob("*-annotated.tsv"), *folder.glob("neu_*.txt")])
    _need(files, folder, "LANG-projections.tsv, en-annotated.tsv or neu_en.txt of XED")
    for file in files:
        is_neutral = file.name.startswith("neu_")
        code = file.stem.removeprefix("neu_").split("-")[0]
        pattern = _XED_NEUTRAL if is_neutral else _XED_LINE
        found = 0
        for line in file.read_text(encoding="utf-8").split("\n"):
            if match := pattern.fullmatch(line):
                labels = [_XED_LABELS.get(label.strip(), "") for label in match["labels"].split(",")]
                found += 1
                yield _text("xed", _XED_LANGUAGES.get(code, code), match["text"], labels, "CC BY 4.0 (XED)")
        if not found:
            raise ValueError(f"{file}: no line is a sentence with XED's labels, such as 'Was ist passiert?\\t4, 7'")


def read_brighter(folder: epath.Path) -> Iterator[Text]:
    """BRIGHTER's emotion categories: parquet (CODE/SPLIT-*.parquet or CODE-*.parquet) or csv (…/CODE.csv).

    Columns: id, text and one 0/1 column an emotion (English lacks disgust); further columns do not matter. All zero
    is neutral, as its annotators were told.
    """
    files = [*_below(folder, "*.parquet"), *_below(folder, "*.csv")]
    named = [(file, code) for file in files if (code := _brighter_code(file))]
    _need(named, folder, "parquet or csv files of BRIGHTER, named or filed by language code (eng, deu, …)")
    for file, code in named:
        rows = _parquet_rows(file) if file.suffix == ".parquet" else _csv_rows(file)
        for number, row in enumerate(rows, start=1):
            row = {str(name).strip().casefold(): value for name, value in row.items()}
            flags = [name for name in _BRIGHTER_EMOTIONS if name in row]
            if "text" not in row or len(flags) < 4:
                raise ValueError(
                    f"{file}: expected the columns id, text, {', '.join(_BRIGHTER_EMOTIONS)}; got {', '.join(row)}"
                )
            try:
                labels = [name for name in flags if row[name] not in (None, "") and float(row[name]) > 0]
            except (TypeError, ValueError):
                raise ValueError(f"{file}, record {number}: emotions must be 0 or 1, got {row}") from None
            if row["text"]:
                text = str(row["text"])
                yield _text("brighter", _BRIGHTER_LANGUAGES[code], text, labels or ["neutral"], "CC BY 4.0 (BRIGHTER)")


def read_goemotions(path: epath.Path) -> Iterator[Text]:
    """GoEmotions: a folder with train.tsv, dev.tsv, test.tsv, or full_dataset/goemotions_*.csv; or one such file.

    TSV: text, comma-separated indices into emotions.txt, id of the comment; no header. CSV: a row a rater, from which
    those emotions are taken that two raters saw, as for the TSV. The 27 emotions count as Ekman's six by the
    authors' own ekman_mapping.json.
    """
    files = [path]
    if path.is_dir():
        files = [file for name in ("train", "dev", "test") if (file := path / f"{name}.tsv").exists()]
        files = files or _below(path, "goemotions_*.csv")
        _need(files, path, "train.tsv, dev.tsv, test.tsv or goemotions_1.csv … of GoEmotions")
    _need([file for file in files if file.exists()], path, "GoEmotions")
    rows: Iterable[tuple[str, list[str]]] = (
        _goemotions_raters(files) if files[0].suffix == ".csv" else (row for file in files for row in _goemotions(file))
    )
    for text, fine in rows:
        yield _text("goemotions", "en", text, sorted({_EKMAN_OF[name] for name in fine}), "CC BY 4.0 (GoEmotions)")


def read_tsv(file: epath.Path) -> Iterator[Text]:
    """A table with a header: text and language, and, where known, emotion (of the words), parallel_id and license."""
    _need([file] if file.exists() else [], file, "a tab-separated file")
    lines = file.read_text(encoding="utf-8").removeprefix("\ufeff").splitlines()
    rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = [name.strip().casefold() for name in rows[0]] if rows else []
    if not {"text", "language"} <= set(header):
        raise ValueError(
            f"{file}: the first line must name the columns text and language (and may name emotion, parallel_id and "
            f"license), separated by tabs; got {header}"
        )
    for number, cells in enumerate(rows[1:], start=2):
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise ValueError(f"{file}, line {number}: {len(cells)} cells, expected {len(header)} ({', '.join(header)})")
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        label, (content, _) = row.get("emotion", ""), emotions.canonical(row.get("emotion", ""))
        if label and not content:
            raise ValueError(f"{file}, line {number}: emotion {label!r} is none that corpora/emotions.py knows")
        yield _text(
            "tsv", row["language"], row["text"], [label], row.get("license", ""), row.get("parallel_id", "")
        )  # fmt: skip


READERS: dict[str, Callable[[Any], Iterator[Text]]] = {
    "sentences": read_sentences,
    "xed": read_xed,
    "brighter": read_brighter,
    "goemotions": read_goemotions,
    "tsv": read_tsv,
}


def _text(
    source: str, language: str, text: str, labels: Sequence[str], license: str, parallel_id: str = ""
) -> Text:  # fmt: skip
    """A Text whose id follows from its words, so that it is the same wherever the line stands."""
    content = emotions.canonical(labels[0])[0] if len(set(labels)) == 1 else ""
    digest = hashlib.sha256(json.dumps([language, text]).encode()).hexdigest()[:12]
    return Text(
        id=f"{source}-{language}-{digest}", text=text, language=language, content=content, parallel_id=parallel_id,
        source=source, license=license,
    )  # fmt: skip


def _need(found: Sequence[Any], path: epath.Path, what: str) -> None:
    if not found:
        missing = f"{path} holds no {what}" if path.exists() else f"no such file or folder: {path} (expected {what})"
        raise FileNotFoundError(f"texts: {missing}")


def _below(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """Files in a folder and in two levels of folders below it (epath, for the sake of gs://, has no **)."""
    return sorted(file for levels in ("", "*/", "*/*/") for file in folder.glob(f"{levels}{pattern}"))


def _brighter_code(file: epath.Path) -> str:
    """The language code in a file's own name, else in its folder's; "" where neither has one."""
    for part in (file.name.split(".")[0].split("-")[0], file.parent.name):
        if part.casefold() in _BRIGHTER_LANGUAGES:
            return part.casefold()
    return ""


def _parquet_rows(file: epath.Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(io.BytesIO(file.read_bytes())).to_pylist()


def _csv_rows(file: epath.Path) -> Iterator[dict[str, Any]]:
    return csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""))


def _goemotions(file: epath.Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text, ids, _ = line.rstrip("\r").split("\t")
            yield text, [_GOEMOTIONS[int(index)] for index in ids.split(",")]
        except (ValueError, IndexError):
            raise ValueError(
                f"{file}, line {number}: expected text, numbers of emotions (0–27) and an id, got {line[:80]!r}"
            ) from None


def _goemotions_raters(files: Sequence[epath.Path]) -> Iterator[tuple[str, list[str]]]:
    votes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    words: dict[str, str] = {}
    for file in files:
        for row in _csv_rows(file):
            if not {"text", "id", *_GOEMOTIONS} <= set(row):
                raise ValueError(f"{file}: expected the columns text, id and one an emotion; got {', '.join(row)}")
            words[row["id"]] = row["text"]
            votes[row["id"]].update(name for name in _GOEMOTIONS if row[name] == "1")
    for key, text in words.items():
        if agreed := [name for name in _GOEMOTIONS if votes[key][name] >= 2]:
            yield text, agreed
