"""The speech that a stage trains on and is scored on: config in, device batches and facts about the data out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax.corpora.emotions import EMOTIONS, label_space
from mser_jax.data import audio, fingerprint, held_back, identity, mixture, pipeline, sources, unreadable
from mser_jax.data.feature_cache import CachedFeatures
from mser_jax.models import speech_reader
from mser_jax.models.speech_encoder import SpeechEncoderConfig
from mser_jax.parallel import sharding
from mser_jax.stages import exposure
from mser_jax.stages.device_batches import DeviceBatches
from mser_jax.stages.frozen_features import FrozenFeatures
from mser_jax.stages.frozen_texts import FrozenTexts
from mser_jax.telemetry.compiling import Compilations

# `data.exclude_languages` of configs/stage1.py.
USUALLY_EXCLUDED = "fa,pl"


def names(text: str) -> tuple[str, ...]:
    """'a, b' -> ('a', 'b')."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


class SpeechData:
    """Opens corpora on first use only: a checkpoint is scored without its training data, by its `metadata`."""

    def __init__(
        self,
        config: ConfigDict,
        encoder: SpeechEncoderConfig,
        text: pipeline.TextMaker,
        metadata: Mapping[str, Any] | None = None,
        *,
        trained_before: Mapping[str, Sequence[str]] | None = None,
        models_before: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            config: of the run.
            encoder: tells frames.
            text: makes the text of training batches.
            metadata: what `self.metadata()` returned when the checkpoint was written.
            trained_before: corpora and languages that the parameters heard before this run.
            models_before: `pretrained_models` of the stage 1 run that the speech side starts from.
        """
        self._trained_before = trained_before or {"corpora": (), "languages": ()}
        self._models_before = models_before
        self._config = config
        self._encoder = encoder
        self._metadata = metadata
        self._unfiltered: dict[str, sources.MixtureTable] = {}
        self._features: dict[str, epath.Path] = {}
        self._unreadable: dict[tuple[str, int], str] = {}
        self.compilations = Compilations()
        self._texts: FrozenTexts | None = None
        with config_lib.blame("data"):
            self._options = train_options(config, text)

    @property
    def max_unreadable(self) -> float:
        """Share of a table's records that may turn out not to be decodable."""
        return self._config.data.get("max_unreadable", unreadable.DEFAULT_SHARE)

    def note_unreadable(self, table: sources.MixtureTable, found: Mapping[int, str]) -> None:
        """Remembers the rows of `table` that could not be decoded, and why."""
        self._unreadable |= {_place(table, row): why for row, why in found.items()}

    def why_unreadable(self, table: sources.MixtureTable, rows: np.ndarray) -> list[str]:
        """What was noted of `rows` of a table."""
        return [self._unreadable.get(_place(table, row), "") for row in rows]

    @functools.cached_property
    def table(self) -> sources.MixtureTable:
        """The training mix, without who is held back. Raises ConfigError when the corpora or filters leave nothing."""
        return self._without(self._may_train, self.held_back)

    @property
    def scored_only(self) -> bool:
        """Whether this is the data of a checkpoint that is scored, not of a run that trains."""
        return self._metadata is not None

    @functools.cached_property
    def _may_train(self) -> sources.MixtureTable:
        data = self._config.data
        with config_lib.blame("data"):
            return self._filtered(data.corpora, data, names(data.emotions) or EMOTIONS)

    @functools.cached_property
    def held_back(self) -> tuple[str, ...]:
        """The speakers of the training corpora who do not train, to calibrate (held_back.py)."""
        if self._metadata is not None:
            return tuple(self._metadata.get("held_back", ()))
        wanted = self._config.evaluate.get("dev_utterances", 0)
        return held_back.choose(self._may_train, wanted) if wanted and not len(self._validation) else ()

    @functools.cached_property
    def _validation(self) -> sources.MixtureTable:
        """What the training corpora hold out for validation, of speakers who neither train nor are scored."""
        data = self._config.data
        with config_lib.blame("data"):
            there = self._whole(data.corpora).filter(
                include_languages=data.include_languages, exclude_languages=data.exclude_languages
            )
        there = held_back.select(there, there["split"] == "validation")
        return held_back.unseen(there, self._may_train, self._may_be_scored())

    @functools.cached_property
    def dev_table(self) -> sources.MixtureTable | None:
        """At most `evaluate.dev_utterances` to fit a temperature on, evenly over the records; of a run that trains.

        None where it is asked for none, or there is nobody who neither trains nor is scored.
        """
        wanted = self._config.evaluate.get("dev_utterances", 0)
        if self._metadata is not None or not wanted:
            return None
        free = self._validation
        if self.held_back:
            mine = held_back.select(self._may_train, np.isin(self._may_train["speaker"], self.held_back))
            free = held_back.unseen(mine, self.table, self.evaluation_table())
        with config_lib.blame("evaluate"):
            labels = label_space(self._config.evaluate.label_space)
        rows = np.flatnonzero(np.isin(free["emotion"].astype(str), labels))
        if not len(rows):
            return None
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), wanted)).round().astype(int)]
        return held_back.select(free, np.isin(np.arange(len(free)), chosen))

    def evaluation_table(self) -> sources.MixtureTable:
        """What `config.evaluate` scores: every utterance with a canonical emotion, or with one of the labels only.

        Speakers who are held back to calibrate are not scored in the languages that they would have trained.
        """
        languages = self.metadata()["trained_on"]["languages"]
        table = self._without(self._may_be_scored(), self.held_back, languages)
        if self._metadata is None:  # else the training mix is not there
            identity.warn_of_trained(table.columns, self.table.columns)
            identity.warn_of_namesakes(table.sources, self.table.sources)
        return table

    def _may_be_scored(self) -> sources.MixtureTable:
        evaluate = self._config.evaluate
        with config_lib.blame("evaluate"):
            emotions = label_space(evaluate.label_space) if evaluate.get("closed_set") else EMOTIONS
            return self._filtered(evaluate.corpora or self._config.data.corpora, evaluate, emotions)

    def unlabelled(self) -> list[dict[str, Any]]:
        """Count the utterances that pass the filters of `config.evaluate` but have no canonical emotion, as
        MixtureTable.unlabelled does.
        """
        evaluate = self._config.evaluate
        with config_lib.blame("evaluate"):
            return self._filtered(evaluate.corpora or self._config.data.corpora, evaluate, None).unlabelled()

    @staticmethod
    def _without(
        table: sources.MixtureTable, speakers: Sequence[str], languages: Sequence[str] | None = None
    ) -> sources.MixtureTable:
        """The rows of other speakers, or in other languages than these."""
        gone = np.isin(table["speaker"].astype(str), speakers)
        if languages is not None:
            gone &= np.isin(table["primary"].astype(str), languages)
        if not gone.any():
            return table
        with config_lib.blame("evaluate"):
            if gone.all():
                raise ValueError(f"all {len(table)} utterances are of speakers who calibrate the run: nothing to score")
        return held_back.select(table, ~gone, f"{len(speakers)} speakers held back to calibrate")

    def whole_table(self) -> sources.MixtureTable:
        """Every utterance with a canonical emotion of the corpora that are scored, whatever the filters."""
        with config_lib.blame("evaluate"):
            return self._whole(self._config.evaluate.corpora or self._config.data.corpora).filter()

    def _filtered(self, specs: str, section: ConfigDict, emotions: tuple[str, ...] | None) -> sources.MixtureTable:
        whole = self._whole(specs)
        # The training of a checkpoint that is scored is over.
        if self._metadata is None or section is self._config.evaluate:
            whole.check_names(include_languages=section.include_languages, split=section.split)
            self._check_excluded(whole, section.exclude_languages)
        return whole.filter(
            include_languages=section.include_languages,
            exclude_languages=section.exclude_languages,
            split=section.split,
            emotions=emotions,
        )

    def _check_excluded(self, whole: sources.MixtureTable, languages: str) -> None:
        """Raises ValueError where an excluded language is in no corpus of the run, trained on or scored: a slip.

        What stage 1's config excludes unasked is M5SER-mini's, and need not be in corpora that others name.
        """
        lacking = [] if languages == USUALLY_EXCLUDED else whole.lacking(languages)
        data, evaluate = self._config.data.corpora, self._config.evaluate.corpora
        for specs in dict.fromkeys((data, evaluate)) if lacking and self._metadata is None else ():
            if specs:
                lacking = [item for item in lacking if self._whole(specs).lacking(item)]
        if lacking:
            raise ValueError(
                f"exclude_languages={languages}: no record is in {', '.join(lacking)}; {whole.languages_there()}"
            )

    def _whole(self, specs: str) -> sources.MixtureTable:
        if specs not in self._unfiltered:
            data = self._config.data
            try:
                self._unfiltered[specs] = sources.load_table(specs, data.data_dir, data.get("labels", ""))
            except RuntimeError as error:  # a corpus that is damaged, or too much of it unusable
                raise config_lib.ConfigError(f"--config.data.corpora: {error}") from error
        return self._unfiltered[specs]

    def use_features(self, features: FrozenFeatures) -> None:
        """From now on batches hold kept states. Those of every corpus in use are computed where they are missing.

        Raises:
            ConfigError, Preempted: as `FrozenFeatures.folder`.
        """
        data, evaluate = self._config.data, self._config.evaluate
        training = (data.corpora,) if self._metadata is None or evaluate.get("encoder_probe") else ()
        for specs in dict.fromkeys((*training, evaluate.corpora or data.corpora)):
            with config_lib.blame("data"):
                whole = self._whole(specs)
            for number, source in enumerate(whole.sources):
                if source.folder not in self._features:
                    self._features[source.folder] = features.folder(whole, number)

    def use_texts(self, texts: FrozenTexts) -> None:
        """From now on training batches hold, in place of a caption's tokens, what the frozen tower says of it."""
        self._texts = texts

    def _cached(self, table: sources.MixtureTable) -> CachedFeatures | None:
        """What `use_features` found, for the rows of `table`."""
        if not self._config.data.feature_cache:
            return None
        samples = self._class_samples()
        return CachedFeatures(
            table,
            [self._features[source.folder] for source in table.sources],
            (self._encoder.num_layers + 1, self._encoder.width),
            {n: self._num_frames(n) for n in samples},
            last_frames=1 if self._config.model.get("trailing_silence") else 0,
        )

    def _num_frames(self, num_samples: int) -> int:
        """Kept frames of so many samples."""
        model = self._config.model
        return speech_reader.num_frames(
            self._encoder, model.frame_pool, model.get("trailing_silence", 0.0), num_samples
        )

    def _class_samples(self) -> list[int]:
        return [round(seconds * audio.SAMPLE_RATE) for seconds in self._config.data.length_classes]

    def samples_of(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> int:
        """Samples of the length class of a batch, also of one that holds states."""
        if "waveform" in batch:
            return batch["waveform"].shape[1]
        return {self._num_frames(n): n for n in self._class_samples()}[batch["states"].shape[1]]

    @functools.cached_property
    def pretrained_models(self) -> Mapping[str, str]:
        """{section: what its pretrained model is called in the registry of who has seen what} (exposure.models)."""
        known = (self._metadata or {}).get("pretrained_models")
        return exposure.models(self._config, self._models_before) if known is None else known

    def metadata(self) -> dict[str, Any]:
        """JSON: what was trained on, now and by the models that it started from, and the sizes of its vocabularies."""
        before = {"pretrained_models": dict(self.pretrained_models)}
        if self._metadata is not None:
            kept = ("trained_on", "num_classes", "fingerprints")
            found = {key: self._metadata[key] for key in kept if key in self._metadata}
            return {**found, **before, "held_back": list(self.held_back)}
        return {
            **before,
            "fingerprints": self._fingerprints,
            "held_back": list(self.held_back),
            "trained_on": {
                "corpora": sorted({*self.table["corpus"].tolist(), *self._trained_before["corpora"]}),
                "languages": sorted({*self.table["primary"].tolist(), *self._trained_before["languages"]}),
            },
            "num_classes": self.num_classes,
        }

    @functools.cached_property
    def _fingerprints(self) -> dict[str, fingerprint.Fingerprint]:
        """Of the corpora as they are, whatever the filters: those are the config's."""
        return fingerprint.of_table(self._whole(self._config.data.corpora))

    @property
    def num_classes(self) -> dict[str, int]:
        """{"language" | "speaker" | "domain": size of the training mix's vocabulary}."""
        if self._metadata is not None:
            return self._metadata["num_classes"]
        vocabularies = self.table.vocabularies
        return {
            "language": len(vocabularies.languages),
            "speaker": len(vocabularies.speakers),
            "domain": len(vocabularies.domains),
        }

    def size(self) -> config_lib.DataSize:
        """Examples and hours in one pass."""
        if self._metadata is not None and "size" in self._metadata:
            return config_lib.DataSize(**self._metadata["size"])
        return config_lib.DataSize(len(self.table), self.table.hours)

    def describe(self) -> str:
        """The training mix as a table."""
        return mixture.describe(self.table, self._options.mixture)

    def batches(self, start: int, mesh: Mesh) -> DeviceBatches:
        """Training batches of steps start, start + 1, …"""
        with config_lib.blame("train"):
            host = pipeline.train_batches(
                self.table, self._options, seed=self._config.seed, start=start,
                process_index=jax.process_index(), process_count=jax.process_count(), features=self._cached(self.table),
            )  # fmt: skip
        return DeviceBatches(host, mesh, self.table["id"], self.max_unreadable, self._texts)

    def evaluation_batches(self, table: sources.MixtureTable, mesh: Mesh) -> pipeline.Batches:
        """One epoch over `table` on the host, its batch size rounded up to what the mesh divides.

        What is longer than the longest length class has a row for every window of it, as predict hears it.
        """
        parts = sharding.batch_parts(mesh)
        size = -(-self._config.evaluate.batch_size // parts) * parts
        return pipeline.eval_batches(
            table, batch_size=size, length_classes=tuple(self._config.data.length_classes), read=self._options.read,
            process_index=jax.process_index(), process_count=jax.process_count(), features=self._cached(table),
            windows=True,
        )  # fmt: skip

    def batch_spec(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of the longest training batch."""
        size, samples, encoder = self._config.train.batch_size, max(self._class_samples()), self._encoder
        shapes = {name: ((size, *row), dtype) for name, (row, dtype) in self._options.text.shapes().items()}
        if self._config.data.feature_cache:
            frames = self._num_frames(samples)
            states = (size, frames, encoder.num_layers + 1, encoder.width)
            shapes |= {"states": (states, self._config.data.feature_dtype), "num_frames": ((size,), np.int32)}
        else:
            shapes["waveform"] = ((size, samples), np.int16)
        ids = ("num_samples", "emotion", "language", "speaker", "domain", "parallel_id", "record")
        shapes |= {"valid": ((size,), np.bool_), **dict.fromkeys(ids, ((size,), np.int32))}
        where = sharding.batch_sharding(mesh)
        return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, (shape, dtype) in shapes.items()}

    def names(self, batch: Mapping[str, jax.Array]) -> list[str]:
        """Ids of the utterances of a batch (of those that this process holds)."""
        rows = np.concatenate([np.asarray(shard.data) for shard in batch["record"].addressable_shards])
        return [str(name) for name in self.table["id"][np.unique(rows[rows >= 0])]]


def _place(table: sources.MixtureTable, row: int) -> tuple[str, int]:
    """Where a record lies, whatever table it is in."""
    return table.sources[table["source"][row]].spec, int(table["position"][row])


def train_options(config: ConfigDict, text: pipeline.TextMaker) -> pipeline.TrainOptions:
    """What the config's `data` section says of training batches. Raises ValueError for options that cannot be."""
    data = config.data
    return pipeline.TrainOptions(
        batch_size=config.train.batch_size,
        mixture=mixture.MixtureOptions(
            length_classes=tuple(data.length_classes),
            temperature=data.temperature,
            balance_emotions=data.balance_emotions,
            pair_languages=data.pair_languages,
        ),
        text=text,
        augmentation=audio.Augmentation(**data.augment),
        read=pipeline.ReadOptions(num_workers=data.num_workers, num_threads=data.num_threads, prefetch=data.prefetch),
    )
