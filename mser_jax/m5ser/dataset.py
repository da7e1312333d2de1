"""`m5ser:DIR`: a data set that `python -m mser_jax.m5ser --workdir=DIR` finished, where it lies, as a corpus."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet
import tensorflow_datasets as tfds

from mser_jax import storage
from mser_jax.corpora.builder import CorpusBuilder, RawUtterance
from mser_jax.m5ser import plan

PROVENANCE = "provenance"


class M5ser(CorpusBuilder):
    """A generated data set. Nothing is built when it is opened: that would take hours, and a config."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Synthetic emotional speech: texts, languages, voices and engines, each with every emotion equally."

    @classmethod
    def from_argument(cls, argument: str, data_dir: str = "") -> M5ser:
        """Builder for the workdir `argument`, local or gs://; `data_dir` has no meaning here.

        Raises:
          ValueError: no folder given.
          FileNotFoundError: no such folder.
        """
        del data_dir
        if not argument:
            raise ValueError("corpus 'm5ser' needs the folder of a generated data set: m5ser:DIR")
        folder = storage.absolute(argument)
        if not folder.exists():
            raise FileNotFoundError(
                f"m5ser: no folder {folder}. Generate it: python -m mser_jax.m5ser --config=configs/m5ser.py"
                f" --workdir={folder}"
            )
        return cls(data_dir=os.fspath(folder))

    @property
    def short_name(self) -> str:
        """The folder's name: two of them may be in one mix."""
        return f"m5ser-{self.data_path.name}"

    @property
    def place(self) -> str:
        """See CorpusBuilder.place."""
        return os.fspath(self.data_path)

    def index(self) -> pa.Table:
        """As of every corpus; `provenance` (index_with_provenance) is left out, as it is larger than all the rest."""
        table = pa.parquet.ParquetFile(pa.BufferReader(self.index_path.read_bytes()))
        return table.read(columns=[name for name in table.schema_arrow.names if name != PROVENANCE])

    def index_with_provenance(self) -> pa.Table:
        """The index and the column `provenance`: JSON of engine, voice, intensity, seed, text, parameters, measures."""
        return super().index()

    def prepare(self) -> None:
        """Makes sure that the data set is finished.

        Raises:
          RuntimeError: it is not; the message says how to go on with it.
        """
        if not self.is_complete():
            begun = (self.data_path / plan.PLAN_FILE).exists()
            state = "is not finished yet" if begun else "holds no generated data set"
            raise RuntimeError(
                f"m5ser: {self.data_path} {state}. {'Run again' if begun else 'Run'} python -m mser_jax.m5ser"
                f" --config=configs/m5ser.py[:variant] --workdir={self.data_path}"
                f"{' as before: it goes on where it stopped' if begun else ''}"
            )

    def raw_utterances(self) -> Iterator[RawUtterance]:
        """Never called: the records are written by chunks.py."""
        raise NotImplementedError("python -m mser_jax.m5ser writes the records")

    def _build_data_dir(self, given_data_dir: str | None) -> tuple[str, str]:
        # The data set itself, not a folder below it by name and version.
        return str(given_data_dir), str(given_data_dir)
