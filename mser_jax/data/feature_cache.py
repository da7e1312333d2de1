"""Outputs of a frozen speech encoder, computed once and kept in ArrayRecord files.

One folder holds the features of one corpus for one key, which says what they were made of: encoder weights and
architecture, precision, crop, corpus. Another key is another folder, so features never meet a run they do not belong
to. feature_build.py writes a folder; it takes its name when it is complete.

  key.json               {"key": {…}, "records": n, "shards": {file: [records, bytes]}}
  rows.npy               int64 [n]: where the record at each position of the corpus lies among the features
  features-*.array_record
Record: num_samples int32, then states [T, L + 1, D] of the key's dtype, row-major, little-endian. Where the recording
could not be decoded: -1 and the reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from mser_jax import storage
from mser_jax.corpora import shard_cache
from mser_jax.corpora.audio_check import BadAudio, Reason
from mser_jax.data import audio
from mser_jax.data.sources import MixtureTable, Source

FORMAT = 1  # raise it when records, front ends or `DualEncoder.hidden_states` change what is stored
KEY_FILE = "key.json"
ROWS_FILE = "rows.npy"
DTYPES = ("float16", "float32")
_NUM_SAMPLES = np.dtype("<i4")
# What a change of a recording changes; labels may change without touching it.
_AUDIO_COLUMNS = ("id", "duration_s", "pitch_hz", "loudness_db")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What is stored, whatever the corpus.

    weights: fingerprint of the encoder's parameters. encoder: its architecture, JSON. compute: dtype of the
    arithmetic. max_samples: of longer recordings, the middle. frame: (L + 1, D), one frame of states. dtype: one of
    DTYPES.
    """

    weights: str
    encoder: Mapping[str, Any]
    compute: str
    max_samples: int
    frame: tuple[int, int]
    dtype: str = "float16"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return int(np.prod(self.frame)) * np.dtype(self.dtype).itemsize

    def key(self, source: Source) -> dict[str, Any]:
        """JSON of all that the features of `source` depend on. Raises ValueError: as `corpus_fingerprint`."""
        return json.loads(
            json.dumps({"format": FORMAT, **dataclasses.asdict(self), "corpus": corpus_fingerprint(source)})
        )


def corpus_fingerprint(source: Source) -> str:
    """16 hex digits over a corpus's recordings as its index describes them, and its files.

    Hashed are id, duration, pitch and loudness of every record (measured when the corpus was built) and names and
    sizes of the record files; not the audio itself, which is 100 GB where the index is 100 MB. Labels are left out.

    Raises:
        ValueError: the corpus does not lie in a folder with an index.
    """
    from mser_jax.corpora.builder import INDEX_FILE  # Workers import this module, and never open a corpus.

    folder = epath.Path(source.folder)
    if not source.folder or not (folder / INDEX_FILE).exists():
        raise ValueError(f"{source.spec}: features are kept for corpora on disk; there is no {folder / INDEX_FILE}")
    index = pyarrow.parquet.read_table(
        pyarrow.BufferReader((folder / INDEX_FILE).read_bytes()), columns=list(_AUDIO_COLUMNS), pre_buffer=False
    )
    digest = hashlib.sha256("\0".join(index["id"].to_pylist()).encode())
    for name in _AUDIO_COLUMNS[1:]:
        digest.update(index[name].to_numpy().astype("<f4").tobytes())
    for path in sorted(folder.glob("*array_record*")):
        digest.update(f"{path.name},{path.stat().length};".encode())
    return digest.hexdigest()[:16]


def folder_of(source: Source, where: str, key: Mapping[str, Any]) -> epath.Path:
    """Where the features of `key` are kept. `where`: "auto" is beside the corpus's records, else a directory.

    Of records on `gs://`, where array_record cannot write, "auto" is beside this host's copies of them.

    Raises:
        ValueError: `where` is on `gs://`.
    """
    if storage.is_remote(where):
        raise ValueError(
            f"{where}: array_record, which writes features, cannot write to gs://. Name a directory of this host or "
            "one where the bucket is mounted with gcsfuse"
        )
    auto = epath.Path(shard_cache.local_folder(source.folder)) / "features"
    root = auto if where == "auto" else storage.absolute(where) / source.name
    text = json.dumps(key, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:12]


def is_complete(folder: epath.Path, key: Mapping[str, Any]) -> bool:
    """Whether `folder` has all features of `key`.

    Raises:
        ValueError: it is there, but damaged or of another key.
    """
    if not folder.exists():
        return False
    try:
        told = json.loads((folder / KEY_FILE).read_text())
        if told["key"] != key:
            raise ValueError(f"made for another key ({differences(told['key'], key)})")
        for name, (_, size) in told["shards"].items():
            if (found := (folder / name).stat().length) != size:
                raise ValueError(f"{name} has {found} bytes, expected {size}")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: these features cannot be used: {error}. Delete the folder") from error
    return True


def others(folder: epath.Path, key: Mapping[str, Any]) -> list[str]:
    """A line for each complete folder beside `folder`: what it is made of and `key` is not."""
    lines = []
    for path in sorted(folder.parent.glob(f"*/{KEY_FILE}")):
        if path.parent != folder and not path.parent.name.startswith("incomplete"):
            lines.append(f"{path.parent}: {differences(json.loads(path.read_text())['key'], key)}")
    return lines


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """'weights a1b2 → c3d4, …' for each part of a key that differs."""
    return ", ".join(
        f"{name} {theirs.get(name)} → {ours.get(name)}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    )


def pack(states: np.ndarray, num_samples: int, dtype: str) -> bytes:
    """One record: states [T, L + 1, D] in `dtype`, samples of audio that they were made from."""
    return np.array(num_samples, _NUM_SAMPLES).tobytes() + states.astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def pack_reason(reason: str) -> bytes:
    """The record of an utterance that could not be decoded: why."""
    return np.array(-1, _NUM_SAMPLES).tobytes() + reason.encode()


class CachedFeatures:
    """Random access from a row of a MixtureTable to its states. Picklable; safe in threads."""

    def __init__(
        self,
        table: MixtureTable,
        folders: Sequence[epath.Path],
        frame: tuple[int, int],
        frames: Mapping[int, int],
        last_frames: int = 0,
    ) -> None:
        """
        Args:
            table: rows as batches name them.
            folders: complete ones, in the order of `table.sources`.
            frame: (L + 1, D).
            frames: {samples of a length class: frames of a batch of it}.
            last_frames: so many frames at the end say something of the whole utterance, and are never cut off.
        """
        self.frame, self.frames, self._last = frame, dict(frames), last_frames
        self._data, rows = [], np.empty(len(table), np.int64)
        self._folders = [str(folder) for folder in folders]
        for number, folder in enumerate(folders):
            told = json.loads((folder / KEY_FILE).read_text())
            self._data.append(ArrayRecordDataSource([str(folder / name) for name in told["shards"]]))
            own = table["source"] == number
            with (folder / ROWS_FILE).open("rb") as file:
                rows[own] = np.load(file)[table["position"][own]]
        self.dtype = np.dtype(told["key"]["dtype"]).newbyteorder("<")
        self._source, self._rows = table["source"], rows

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        """States [T, L + 1, D] (read-only), and the samples of audio that they were made from.

        Raises:
            BadAudio: the recording could not be decoded when the features were made.
            StorageError: the features cannot be read, attempt after attempt.
        """
        data, position = self._data[self._source[row]], int(self._rows[row])
        record = storage.retried(
            lambda: data[position], f"Features, record {position} of {self._folders[self._source[row]]}"
        )
        num_samples = int(np.frombuffer(record, _NUM_SAMPLES, 1)[0]) if record else -1
        if num_samples < 0:  # empty: kept so by earlier versions, whatever the reason was
            reason = record[_NUM_SAMPLES.itemsize :].decode() or Reason.UNREADABLE
            raise BadAudio(Reason(reason), "found when its features were made")
        states = np.frombuffer(record, self.dtype, offset=_NUM_SAMPLES.itemsize)
        return states.reshape(-1, *self.frame), num_samples

    def cut(self, states: np.ndarray, frames: int) -> np.ndarray:
        """States [T, …] -> the middle of them and the last frames, at most `frames` in all."""
        if len(states) <= frames:
            return states
        end = len(states) - self._last
        return np.concatenate([audio.crop(states[:end], frames - self._last, None), states[end:]])
