"""Which records make up the batch of a step: weights, length classes, pairs. pipeline.py loads them.

A training batch is a pure function of (table, options, seed, step): every transformation below is a random
access `grain.MapDataset` and maps one index to one index, so `plan[start:]` resumes and every number of
processes sees the same global batches.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Sequence

import grain
import numpy as np

from mser_jax.corpora.emotions import EMOTIONS
from mser_jax.data import audio
from mser_jax.data.sources import MixtureTable
from mser_jax.data.text import hash31

# Grain turns weights into integers by cutting them off; a smallest share of 100 keeps the rounding below 1 %.
_SMALLEST_SHARE = 100


class Stream(enum.IntEnum):
    """What random numbers are drawn for; each has its own for every position of every length class.

    The order of a stratum's rows is a permutation by another key (_ShuffledRows).
    """

    AUDIO = 1
    TEXT = 2
    STEP = 3
    PAIRS = 4


def generator(seed: int, stream: Stream, length_class: int, number: int) -> np.random.Generator:
    """Make the random numbers of one global position (or batch): the same on whatever process or worker it falls."""
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, 0, length_class, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOptions:
    """How records are drawn.

    length_classes: seconds, increasing. A record belongs to the smallest class that holds it, else to the
      largest and is cropped. All batches of a step have one class. In training a class with fewer records
      than a global batch would show records twice in one batch (false negatives), so it is merged into the
      next longer one; the longest, if it is still too small, into the one below it (cropping a few clips is
      cheaper than padding all others).
    temperature: T of weight ∝ n^(1/T) over corpora, and over languages inside a corpus; 1 = by size, inf =
      alike. A corpus's weight is multiplied by that of its spec.
    balance_emotions: emotions alike inside (corpus, language), else by size.
    pair_languages: positions 2k and 2k + 1 are partners: the same words and emotion in another language where
      the length class has such a record, else the same emotion in another language, else an unrelated draw.
      Only the first of each pair then follows the weights exactly.
    """

    length_classes: tuple[float, ...] = (2.0, 4.0, 6.0)
    temperature: float = 1.0
    balance_emotions: bool = True
    pair_languages: bool = False

    def __post_init__(self) -> None:
        steps = np.diff((0.0, *self.length_classes))
        if not len(self.length_classes) or not (steps > 0).all():
            raise ValueError(f"length_classes={self.length_classes}: expected increasing, positive seconds")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected > 0 (1 = by size, inf = alike)")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of one process's part of one batch.

    length_class: index in `length_classes`. positions: int64 [n], global position of each row within its
    class (the seed of its augmentation). rows: int32 [n] in the table, -1 = padding. windows: int32 [n], which window
    (audio.windows) of each row's recording, where recordings are longer than the class; None: each is heard at once.
    """

    length_class: int
    positions: np.ndarray
    rows: np.ndarray
    windows: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Records drawn alike: one source, corpus, language and emotion. Weights sum to 1 over all strata."""

    key: tuple[int, str, str, int]
    rows: np.ndarray
    weight: float


def strata(table: MixtureTable, options: MixtureOptions) -> list[Stratum]:
    """Every (source, corpus, language, emotion) of the table, ordered by key, with its weight."""
    keys = list(zip(*(table[name].tolist() for name in ("source", "corpus", "primary", "emotion_id")), strict=True))
    groups: dict[tuple[int, str, str, int], list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    counts = {key: len(rows) for key, rows in groups.items()}
    exponent = 1 / options.temperature

    def share(key: tuple, depth: int) -> float:
        """Weight of key[: depth + 1] among its siblings (not normalised)."""
        n = sum(count for other, count in counts.items() if other[: depth + 1] == key[: depth + 1])
        if depth == 3:
            return 1.0 if options.balance_emotions else n
        return n**exponent * (table.sources[key[0]].weight if depth == 0 else 1.0)

    weights = dict.fromkeys(counts, 1.0)
    for depth in range(4):
        shares = {key[: depth + 1]: share(key, depth) for key in counts}
        for key in counts:
            siblings = sum(value for prefix, value in shares.items() if prefix[:depth] == key[:depth])
            weights[key] *= shares[key[: depth + 1]] / siblings
    return [Stratum(key, np.array(groups[key], np.int32), weights[key]) for key in sorted(groups)]


def length_class_of(durations: np.ndarray, length_classes: Sequence[float]) -> np.ndarray:
    """int64 [n]: index of the smallest class (seconds) that holds each duration, the last where none does."""
    return np.minimum(np.searchsorted(length_classes, durations), len(length_classes) - 1)


def merge_small(classes: np.ndarray, number: int, batch_size: int) -> np.ndarray:
    """int64 [n]: length classes, those of fewer than `batch_size` records merged away (MixtureOptions)."""
    classes = classes.copy()
    for one in range(number - 1):
        if (classes == one).sum() < batch_size:
            classes[classes == one] = one + 1
    used = np.unique(classes)
    if len(used) > 1 and (classes == used[-1]).sum() < batch_size:
        classes[classes == used[-1]] = used[-2]
    return classes


def training_plan(
    table: MixtureTable,
    options: MixtureOptions,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """An endless dataset of `Plan`s; element s is this process's part of the batch of step s.

    batch_size: global; `batch_size / process_count` rows an element.

    Raises:
        ValueError: batch_size does not divide, or is odd with pairs, or the seed does not fit 32 bits.
    """
    per_process = _per_process(batch_size, process_index, process_count)
    if options.pair_languages and batch_size % 2:
        raise ValueError(f"batch_size={batch_size} with pair_languages: expected an even number")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: expected 0 ≤ seed < 2**32")
    every = strata(table, options)
    classes = length_class_of(table["duration_s"], options.length_classes)
    classes = merge_small(classes, len(options.length_classes), batch_size)
    datasets, weights = [], []
    for one in np.unique(classes).tolist():
        parts = [_part(stratum, stratum.rows[classes[stratum.rows] == one]) for stratum in every]
        parts = [part for part in parts if len(part.rows)]
        rows = _nest(parts, 0, f"{seed}/{one}")
        if options.pair_languages:
            rows = _PairedRows(rows, table, parts, seed, one)
        mine = rows.map_with_index(_with_position)[process_index::process_count]
        datasets.append(mine.batch(per_process, batch_fn=functools.partial(_plan, one)))
        weights.append(sum(part.weight for part in parts))
    return _mix(datasets, weights)


def evaluation_plan(
    table: MixtureTable,
    options: MixtureOptions,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    windows: bool = False,
) -> grain.MapDataset:
    """One epoch of `Plan`s: every record once over all processes, by length class, then in table order.

    The last batch of a class is filled with row -1; every process has the same number of elements and the
    same class in each. With `windows` a record that is longer than the longest class comes last, once for every window
    of it.
    """
    _per_process(batch_size, process_index, process_count)
    classes = length_class_of(table["duration_s"], options.length_classes)
    longest = round(options.length_classes[-1] * audio.SAMPLE_RATE)
    # An unknown duration is heard at once.
    samples = np.rint(np.nan_to_num(table["duration_s"]) * audio.SAMPLE_RATE).astype(int)
    long = (samples > longest) & windows
    groups = [(one, np.flatnonzero((classes == one) & ~long), None) for one in np.unique(classes[~long]).tolist()]
    if long.any():
        counts = [len(audio.windows(int(n), longest)) for n in samples[long]]
        number = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        groups.append((len(options.length_classes) - 1, np.repeat(np.flatnonzero(long), counts), number))
    plans = []
    for one, rows, number in groups:
        batches = math.ceil(len(rows) / batch_size)
        room = (0, batches * batch_size - len(rows))
        padded = np.pad(rows.astype(np.int32), room, constant_values=-1)
        number = None if number is None else np.pad(number, room)
        positions = np.arange(len(padded)).reshape(batches, batch_size)
        for mine in positions[:, process_index::process_count]:
            plans.append(Plan(one, mine, padded[mine], None if number is None else number[mine]))
    return grain.MapDataset.source(plans)


def describe(table: MixtureTable, options: MixtureOptions) -> str:
    """The mixture as text for the log: a line a corpus × language, then length classes and filters."""
    cells: dict[tuple[int, str, str], list[Stratum]] = {}
    for stratum in strata(table, options):
        cells.setdefault(stratum.key[:3], []).append(stratum)
    lines = [f"{'corpus':24} {'lang':5} {'n':>9} {'hours':>9} {'weight':>7}  emotions (n)"]
    for (_, corpus, language), parts in cells.items():
        rows = np.concatenate([part.rows for part in parts])
        emotions = ", ".join(f"{_emotion(part.key[3])} {len(part.rows)}" for part in parts)
        hours = np.nansum(table["duration_s"][rows]) / 3600
        weight = sum(part.weight for part in parts)
        lines.append(f"{corpus:24} {language:5} {len(rows):>9,} {hours:>9.3f} {weight:>7.2%}  {emotions}")
    lines.append(f"{'all':24} {'':5} {len(table):>9,} {table.hours:>9.3f} {1:>7.2%}")
    counts = np.bincount(
        length_class_of(table["duration_s"], options.length_classes), minlength=len(options.length_classes)
    )
    held = ", ".join(f"{length:g} s: {n:,}" for length, n in zip(options.length_classes, counts, strict=True))
    longer = int((table["duration_s"] > options.length_classes[-1]).sum())
    lines.append(f"length classes: {held}" + (f" ({longer:,} longer, cropped)" if longer else ""))
    lines += [f"left out by {name}: {count:,}" for name, count in table.removed if count]
    return "\n".join(lines)


def _emotion(index: int) -> str:
    return "unlabelled" if index < 0 else EMOTIONS[index]


def _per_process(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size={batch_size}, process {process_index} of {process_count}: expected a global batch "
            "size that the number of processes divides"
        )
    return batch_size // process_count


def _part(stratum: Stratum, rows: np.ndarray) -> Stratum:
    """The part of a stratum that lies in one length class, with its share of the weight."""
    return dataclasses.replace(stratum, rows=rows, weight=stratum.weight * len(rows) / len(stratum.rows))


def _nest(parts: Sequence[Stratum], depth: int, salt: str) -> grain.MapDataset:
    """Mixes nested by the elements of the key: the cost of one grows with its number of datasets."""
    if depth == len(parts[0].key):
        (part,) = parts
        return _ShuffledRows(part.rows, hash31(f"{salt}/{part.key}")).repeat()
    groups: dict[object, list[Stratum]] = {}
    for part in parts:
        groups.setdefault(part.key[depth], []).append(part)
    children = [_nest(group, depth + 1, salt) for group in groups.values()]
    return _mix(children, [sum(part.weight for part in group) for group in groups.values()])


def _mix(datasets: Sequence[grain.MapDataset], weights: Sequence[float]) -> grain.MapDataset:
    if len(datasets) == 1:
        return datasets[0]
    shares = [round(_SMALLEST_SHARE * weight / min(weights)) for weight in weights]
    return grain.MapDataset.mix(datasets, shares)


def _with_position(position: int, row: int) -> tuple[int, int]:
    return position, row


def _plan(length_class: int, values: Sequence[tuple[int, int]]) -> Plan:
    positions, rows = zip(*values, strict=True)
    return Plan(length_class, np.array(positions, np.int64), np.array(rows, np.int32))


class _ShuffledRows(grain.MapDataset):
    """Rows of a stratum, in another order every epoch; index // n is the epoch.

    Not `MapDataset.shuffle`: it walks a 16-bit cipher until it meets an index below n, a millisecond a record
    for the 20 rows that a stratum often has.
    """

    def __init__(self, rows: np.ndarray, seed: int) -> None:
        super().__init__()
        self._rows, self._seed = rows, seed
        self._epochs: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> int:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, position = divmod(index, len(self._rows))
        order = self._epochs.get(epoch)
        if order is None:
            rng = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            order = rng.permutation(self._rows)
            # Threads run ahead over the end of an epoch, so two are kept. Replaced whole: safe in threads.
            self._epochs = {
                epoch: order,
                **{one: kept for one, kept in self._epochs.items() if one == epoch - 1},
            }
        return int(order[position])


class _PairedRows(grain.MapDataset):
    """Rows in cross-language pairs (see MixtureOptions.pair_languages); 1:1 in its index.

    Position 2k takes `draws[k]`, not `draws[2k]`: mixes alternate, and every second draw of one over two
    languages is always the same language.
    """

    def __init__(
        self,
        draws: grain.MapDataset,
        table: MixtureTable,
        parts: Sequence[Stratum],
        seed: int,
        length_class: int,
    ) -> None:
        super().__init__([draws])
        self._seed, self._length_class = seed, length_class
        self._strata = [part.rows for part in parts]
        self._weights = np.array([part.weight for part in parts]) / sum(part.weight for part in parts)
        self._emotion = table["emotion_id"]
        names = {name: i for i, name in enumerate(table.vocabularies.languages)}
        # −1: unknown, so another one than that of whatever row cannot be told.
        self._language = np.array([names.get(tag, -1) for tag in table["primary"].tolist()], np.int32)
        # emotion -> [(language, rows)]
        self._by_emotion: dict[int, list[tuple[int, np.ndarray]]] = {}
        for emotion in {part.key[3] for part in parts} - {-1}:
            rows = np.concatenate([part.rows for part in parts if part.key[3] == emotion])
            languages = [one for one in np.unique(self._language[rows]).tolist() if one >= 0]
            self._by_emotion[emotion] = [(one, rows[self._language[rows] == one]) for one in languages]
        # Rows with a parallel_id, sorted so that the same words in the same emotion stand side by side.
        self._words = table["parallel"].astype(np.int64) * len(EMOTIONS) + self._emotion
        rows = np.concatenate([part.rows for part in parts if part.key[3] >= 0] or [np.empty(0, np.int32)])
        rows = rows[table["parallel"][rows] >= 0]
        self._sorted = rows[np.argsort(self._words[rows], kind="stable")]
        self._sorted_words = self._words[self._sorted]

    def __len__(self) -> int:
        return len(self._parents[0])

    def __getitem__(self, index: int | slice) -> int:
        if isinstance(index, slice):
            return self.slice(index)
        pair, second = divmod(index, 2)
        row = self._parents[0][pair]
        if not second:
            return row
        rng = generator(self._seed, Stream.PAIRS, self._length_class, pair)
        partner = self._partner(row, rng)
        return self._anything(rng) if partner is None else partner

    def _partner(self, row: int, rng: np.random.Generator) -> int | None:
        if self._language[row] < 0:
            return None
        start, stop = np.searchsorted(self._sorted_words, [self._words[row], self._words[row] + 1])
        same_words = self._sorted[start:stop]
        languages = self._language[same_words]
        same_words = same_words[(languages >= 0) & (languages != self._language[row])]
        if len(same_words):
            return int(rng.choice(same_words))
        others = self._by_emotion.get(int(self._emotion[row]), [])
        others = [rows for language, rows in others if language != self._language[row]]
        return int(rng.choice(others[int(rng.integers(len(others)))])) if others else None

    def _anything(self, rng: np.random.Generator) -> int:
        """A draw by the weights. Not the next row in turn, which is tied to the stratum of the first."""
        return int(rng.choice(self._strata[int(rng.choice(len(self._strata), p=self._weights))]))
