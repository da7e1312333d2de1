"""`python -m mser_jax.predict --checkpoint=DIR FILE… [--labels=a,b,c] [--language=de,en]`: the emotion of recordings.

One JSON object a line on stdout, in the order of the files:
  {"file", "label", "probabilities": {label: p}, "seconds", "windows", "temperature", "calibrated", "stage",
   "checkpoint"}
wav, flac, mp3, ogg, and with ffmpeg mp4, m4a, webm and more, at 8–96 kHz, any number of channels. A file that cannot be
answered (missing, damaged, silent, shorter than 0.1 s, …) is told on stderr and makes the exit code 1; the others are
answered all the same.

Probabilities are at the temperature that the run's evaluation fitted to this checkpoint, on speakers who did not train
(RUN/calibration.json), whatever the labels are; it moves confidence, never answers. `calibrated` is true where it was
fitted to these labels (or more of them) and prompts; without a temperature it is 1 and `calibrated` false.

Long recordings: a model hears as much at once as the longest clip it was trained on (`data.length_classes`). A longer
file is cut into windows of that length, as few as cover it, evenly spaced and so overlapping a little; its
probabilities are the mean over the windows, as in evaluation. For emotion over time cut the file yourself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging as std_logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import evaluate, storage
from mser_jax.checkpoint import CheckpointError
from mser_jax.corpora import audio_check, emotions, ffmpeg
from mser_jax.data import audio, device, prompts
from mser_jax.evaluation import calibration, finite
from mser_jax.parallel import sharding
from mser_jax.stages import scoring
from mser_jax.stages.base import Scorer

BATCH = 16  # windows of one length that are scored at once


@dataclasses.dataclass
class Recording:
    """A file that could be read: its windows still to be scored, and the probabilities of those that were."""

    file: str
    seconds: float
    windows: int
    probabilities: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def answer(self) -> np.ndarray | None:
        """[labels], once every window is scored."""
        return np.mean(self.probabilities, axis=0) if len(self.probabilities) == self.windows else None


def windows(samples: np.ndarray, length: int) -> list[np.ndarray]:
    """int16 [n] -> the windows (audio.windows) of at most `length` samples that it is heard in."""
    return [samples[start : start + length] for start in audio.windows(len(samples), length)]


class Predictor:
    """Batches windows by length class, so that there are few shapes to compile, and a short clip costs little."""

    def __init__(
        self, checkpoint: evaluate.Checkpoint, scorer: Scorer, found: calibration.Calibration | None = None
    ) -> None:
        """`found`: at whose temperature each window is scored; by default 1."""
        self._checkpoint, self._scorer = checkpoint, scorer
        self._temperature = (found or calibration.Calibration()).temperature
        self._classes = [round(s * audio.SAMPLE_RATE) for s in checkpoint.config.data.length_classes]
        self._parts = sharding.batch_parts(checkpoint.mesh)
        self._waiting: dict[int, list[tuple[Recording, np.ndarray]]] = {length: [] for length in self._classes}
        self._sizes: dict[int, int] = {}
        self.compile_seconds = 0.0

    def add(self, file: str) -> Recording:
        """Reads a file and scores every batch that it fills.

        Raises:
            BadAudio: it cannot be used; the message says why. MissingFfmpegError: not without ffmpeg.
            OSError: the storage refuses, or fails.
        """
        try:
            samples, info = audio_check.load(storage.absolute(file))
        except ValueError as error:  # no path
            raise audio_check.BadAudio(audio_check.Reason.MISSING, str(error)) from error
        return self.add_samples(file, samples, info.duration_s)

    def add_samples(self, name: str, samples: np.ndarray, seconds: float) -> Recording:
        """`add` of int16 [time] at 16 kHz."""
        parts = windows(samples, self._classes[-1])
        recording = Recording(name, seconds, len(parts))
        for part in parts:
            length = next(size for size in self._classes if len(part) <= size)
            self._waiting[length].append((recording, part))
            if len(self._waiting[length]) == BATCH:
                self._score(length)
        return recording

    def finish(self) -> None:
        """Scores what still waits for its batch to fill."""
        for length, waiting in self._waiting.items():
            if waiting:
                self._score(length)

    def _score(self, length: int) -> None:
        waiting, self._waiting[length] = self._waiting[length], []
        # One shape a class, as small as can be: a smaller batch than the one before is padded, a larger one compiles.
        size = 1 << (len(waiting) - 1).bit_length()
        known = self._sizes.get(length, 0)
        rows = max(known, -(-size // self._parts) * self._parts)
        waveform, num_samples = np.zeros((rows, length), np.int16), np.full(rows, length, np.int32)
        for row, (_, samples) in enumerate(waiting):
            waveform[row, : len(samples)], num_samples[row] = samples, len(samples)
        begin = time.perf_counter()
        batch = device.to_device({"waveform": waveform, "num_samples": num_samples}, self._checkpoint.mesh)
        found = np.asarray(self._scorer(self._checkpoint.params, batch), np.float64)
        if self._temperature != 1:
            found = calibration.tempered(found, self._temperature)
        if rows > known:
            self.compile_seconds += time.perf_counter() - begin
            self._sizes[length] = rows
        for (recording, _), probabilities in zip(waiting, found, strict=False):
            recording.probabilities.append(probabilities)


def answers(predictor: Predictor, files: Sequence[str]) -> Iterator[Recording | tuple[str, str]]:
    """For each file in order, as soon as it and those before are done: its recording, or (file, what is wrong)."""
    queue: list[Recording | tuple[str, str]] = []
    for file in files:
        try:
            queue.append(predictor.add(file))
        except (audio_check.BadAudio, ffmpeg.MissingFfmpegError, OSError) as error:
            queue.append((file, str(error)))
        while queue and (isinstance(queue[0], tuple) or queue[0].answer is not None):
            yield queue.pop(0)
    predictor.finish()
    yield from queue


def _for_files(trained: ConfigDict) -> ConfigDict:
    """The config of a checkpoint that hears files: all devices, no kept features, nothing to be downloaded."""
    out = trained.copy_and_resolve_references()
    out.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
    if jax.device_count() == 1:
        # A batch of one row: what is computed from it and what from parameters alone differ in their shardings' names.
        out.mesh.mode = "auto"
    out.data.feature_cache = ""
    return out


def waveform_scorer(run: str, step: int, labels: Sequence[str]) -> Callable[..., np.ndarray]:
    """Open a checkpoint and return `score(waveforms, sampling_rate=16_000)` -> float64 [waveforms, labels].

    A waveform is what `audio_check.load` takes: [time] or [time, channels], int16, int32 or float of full scale 1.
    It is heard as a file of these samples is: longer ones than the model hears at once are cut into windows. `score`
    raises BadAudio, with the number of the waveform (from 0), before any is scored.

    Args:
        run: the workdir of a training run. step: of its checkpoint, negative: the newest.
        labels: any words.

    Raises:
        ConfigError: there is no such run, or it cannot be asked for these labels. CheckpointError: it cannot be read.
        NotFiniteError: from the function, where NaN comes out.
    """
    checkpoint = evaluate.open_checkpoint(run, step, _for_files)
    with jax.set_mesh(checkpoint.mesh):
        scorer = checkpoint.stage.scorer(labels, languages=(), mesh=checkpoint.mesh)
        predictor = Predictor(checkpoint, scorer, _temperature(checkpoint, scorer))

    def score(waveforms: Sequence[np.ndarray], sampling_rate: int = audio.SAMPLE_RATE) -> np.ndarray:
        loaded = [_load(number, waveform, sampling_rate) for number, waveform in enumerate(waveforms)]
        with jax.set_mesh(checkpoint.mesh):
            found = [predictor.add_samples("", samples, seconds) for samples, seconds in loaded]
            predictor.finish()
        answers = np.stack([recording.answer for recording in found]) if found else np.zeros((0, len(labels)))
        finite.check(answers, "waveforms' probabilities", params=checkpoint.params)
        return answers

    return score


def _temperature(checkpoint: evaluate.Checkpoint, scorer: Scorer) -> calibration.Calibration:
    """What the run's evaluation fitted to this checkpoint and way of scoring. Raises ConfigError: it cannot be read."""
    if not (kind := getattr(scorer, "scoring", "")):
        return calibration.Calibration()
    try:
        return calibration.stored(checkpoint.run, checkpoint.step, kind)
    except ValueError as error:
        raise config_lib.ConfigError(str(error)) from error


def _load(number: int, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, float]:
    """(int16 [time] at 16 kHz, seconds) of waveform `number`. Raises BadAudio, with the number."""
    try:
        samples, info = audio_check.load(np.asarray(waveform), sampling_rate)
    except audio_check.BadAudio as error:
        raise audio_check.BadAudio(error.reason, f"waveform {number}: {error.detail}") from error
    return samples, info.duration_s


def predict(checkpoint: evaluate.Checkpoint, files: Sequence[str], labels: str, languages: str) -> int:
    """Prints the answers; returns how many files have none. Empty `labels` and `languages`: as the run was scored.

    Raises:
        ConfigError: the labels or languages cannot be.
        CheckpointError: its parameters are not finite.
    """
    begin = time.perf_counter()
    with config_lib.blame("labels"):
        names = tuple(labels.split(",")) if labels else emotions.label_space(checkpoint.config.evaluate.label_space)
    wanted = tuple(name.strip() for name in languages.split(",") if name.strip())
    if unknown := set(wanted) - set(prompts.prompt_languages()):
        raise config_lib.ConfigError(
            f"--language={languages}: no prompts in {', '.join(sorted(unknown))}; there are "
            f"{', '.join(prompts.prompt_languages())}. The language of the speech need not be told"
        )
    scorer = checkpoint.stage.scorer(names, languages=wanted, mesh=checkpoint.mesh)
    names = [name.strip() for name in names]
    fitted = _temperature(checkpoint, scorer)
    asked = scoring.canonical_labels(names).values(), getattr(scorer, "languages", wanted)
    predictor = Predictor(checkpoint, scorer, fitted)
    failed, seconds = 0, 0.0
    for found in answers(predictor, files):
        if isinstance(found, tuple):
            failed += 1
            print(f"error: {found[0]}: {found[1]}", file=sys.stderr, flush=True)
            continue
        if not np.isfinite(found.answer).all():
            if broken := finite.why_broken(checkpoint.params):
                raise CheckpointError(f"{checkpoint.run}, step {checkpoint.step}: {broken}")
            failed += 1
            print(f"error: {found.file}: its probabilities are not finite (NaN)", file=sys.stderr, flush=True)
            continue
        seconds += found.seconds
        line = {
            "file": found.file,
            "label": names[int(found.answer.argmax())],
            "probabilities": {name: round(float(p), 6) for name, p in zip(names, found.answer, strict=True)},
            "seconds": round(found.seconds, 3),
            "windows": found.windows,
            "temperature": round(fitted.temperature, 4),
            "calibrated": fitted.fits(*asked),
            "stage": checkpoint.config.stage,
            "checkpoint": str(checkpoint.run),
        }
        print(_json(line), flush=True)
    _say_how_fast(len(files) - failed, failed, seconds, time.perf_counter() - begin, predictor.compile_seconds)
    return failed


def _json(line: dict[str, Any]) -> str:
    """Readable, or with escapes where stdout lacks a character (and a name that is not UTF-8 has such)."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(line, allow_nan=False)
    return text


def _say_how_fast(answered: int, failed: int, seconds: float, took: float, first: float) -> None:
    rest = f", {failed} without an answer" if failed else ""
    steady = took - first
    speed = f"; {seconds / took:.1f} s of audio a second" if answered else ""
    print(
        f"{answered} files answered{rest}: {seconds:.1f} s of audio in {took:.1f} s{speed}. "
        f"Compiling and first batches took {first:.1f} s of that, the rest {steady:.1f} s.",
        file=sys.stderr,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code: 0, 1 where a file has no answer, 2 where nothing could be asked at all."""
    parser = argparse.ArgumentParser(
        "python -m mser_jax.predict", description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--checkpoint", required=True, help="the workdir of a training run, stage 1 or 2")
    parser.add_argument("--step", type=int, default=-1, help="of the checkpoint; default: the newest")
    parser.add_argument(
        "--labels", default="", help="any words, comma-separated; default: those the run was scored with"
    )
    parser.add_argument("--language", default="", help="languages of the prompts, comma-separated; not of the speech")
    options = parser.parse_args(argv)
    logging.get_absl_handler().addFilter(lambda record: record.levelno >= std_logging.WARNING)
    try:
        checkpoint = evaluate.open_checkpoint(options.checkpoint, options.step, _for_files)
        with jax.set_mesh(checkpoint.mesh):
            return int(predict(checkpoint, options.files, options.labels, options.language) > 0)
    except (config_lib.ConfigError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if refusal := storage.explain(error):
            print(f"error: {refusal}", file=sys.stderr)
            return 2
        raise


if __name__ == "__main__":
    sys.exit(main())
