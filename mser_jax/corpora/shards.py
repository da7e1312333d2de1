"""Records to ArrayRecord files, one pass, one record in memory at a time."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import example_serializer

SPLIT = "full"  # the one TFDS split ("all" is reserved there); our own split is a field of the record
SHARD_BYTES = 256 * 2**20
# group_size 1: random access reads one record and no neighbours. FLAC does not compress any further.
OPTIONS = "group_size:1,uncompressed"


class ShardWriter(contextlib.AbstractContextManager):
    """Writes examples to shards of about SHARD_BYTES, named as TFDS reads them when the context ends well."""

    def __init__(self, folder: epath.Path, name: str, features: tfds.features.FeaturesDict):
        self._folder = folder
        self._features = features
        self._serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        self._template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=SPLIT, filetype_suffix="array_record"
        )
        self._lengths: list[int] = []
        self._shard_bytes = 0
        self._writer: Any = None
        self.bytes = 0

    def write(self, example: dict[str, Any]) -> None:
        """Appends one example of the features."""
        if self._writer is None or self._shard_bytes > SHARD_BYTES:
            self._close()
            self._writer = array_record_module.ArrayRecordWriter(os.fspath(self._part(len(self._lengths))), OPTIONS)
            self._lengths.append(0)
            self._shard_bytes = 0
        serialized = self._serializer.serialize_example(self._features.encode_example(example))
        self._writer.write(serialized)
        self._lengths[-1] += 1
        self._shard_bytes += len(serialized)
        self.bytes += len(serialized)

    def split_info(self) -> tfds.core.SplitInfo:
        """What TFDS needs to know of the written shards."""
        return tfds.core.SplitInfo(
            name=SPLIT, shard_lengths=self._lengths, num_bytes=self.bytes, filename_template=self._template
        )

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._close()
        if kind is None:
            count = len(self._lengths)
            for shard in range(count):
                self._part(shard).rename(self._template.sharded_filepath(shard_index=shard, num_shards=count))

    def _part(self, shard: int) -> epath.Path:
        # The final name holds the number of shards, which is known at the end.
        return self._folder / f"part-{shard:05d}.tmp"

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
