"""Probabilities that mean what they say: a label's prior taken out, a temperature fitted, both on other utterances.

Prior calibration (Zhao et al. 2021, arXiv 2102.09690; Holtzman et al. 2021, arXiv 2104.08315): an LLM likes some
words whatever it hears. What it says of audio without content is subtracted from what it says of speech.
Temperature scaling (Guo et al. 2017, arXiv 1706.04599): one number for all labels; it moves confidence, never answers.

A training run keeps what it fitted in RUN/calibration.json, by the step of the checkpoint and the way of scoring:
  {"350": {"similarity": {"temperature": 1.9, "label_space": […], "prompt_languages": […], "utterances": [ids], …}}}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from etils import epath
from scipy.special import log_softmax, softmax

from mser_jax import storage
from mser_jax.evaluation import finite

# A dev set that is answered without an error has no best temperature: the search ends here.
TEMPERATURES = (0.05, 20.0)
FILE = "calibration.json"
_SMALLEST = np.finfo(np.float32).tiny


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / temperature), float64, of probabilities [n, labels]; 1 leaves them as they are.

    What is 0 in float32 counts as the smallest normal number (1e-38).
    """
    return softmax(np.log(np.maximum(np.asarray(probabilities, np.float64), _SMALLEST)) / temperature, axis=-1)


def negative_log_likelihood(probabilities: np.ndarray, references: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log p(reference), nats, of probabilities [n, labels] at `temperature` and label ids [n]."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _SMALLEST)) / temperature
    return float(-np.take_along_axis(log_softmax(logits, axis=-1), references[:, None], -1).mean())


def averaged(probabilities: np.ndarray, owner: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Average what the windows of each utterance say, each at `temperature`: [windows, …], [windows] -> [n, …].

    `owner`: index of each window's utterance, in [0, n).
    """
    said = tempered(probabilities, temperature) if temperature != 1 else np.asarray(probabilities, np.float64)
    total = np.zeros((int(owner.max(initial=-1)) + 1, *said.shape[1:]))
    np.add.at(total, owner, said)
    return total / np.bincount(owner).reshape(-1, *[1] * (said.ndim - 1))


def fit_temperature(probabilities: np.ndarray, references: np.ndarray, owner: np.ndarray | None = None) -> float:
    """The temperature within TEMPERATURES that makes the references most likely.

    The likelihood is concave in 1 / temperature where no utterance has several windows, so there is one best.

    Args:
      probabilities: [windows, labels] of utterances that are not scored.
      references: label ids int [n] of the utterances.
      owner: as of `averaged`; by default each utterance has one window.

    Raises:
      ValueError: nothing to fit on.
      NotFiniteError: probabilities that are not finite.
    """
    finite.check(probabilities, "probabilities to fit a temperature on")
    if not len(references):
        raise ValueError("no utterance to fit a temperature on")
    owner = np.arange(len(references)) if owner is None else owner
    low, high = np.log(TEMPERATURES)
    best = scipy.optimize.minimize_scalar(
        lambda x: negative_log_likelihood(averaged(probabilities, owner, np.exp(x)), references),
        bounds=(low, high), method="bounded",
    )  # fmt: skip
    return float(np.exp(best.x))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A temperature and where it comes from. `facts`: JSON of what it was fitted on; None: nothing was fitted."""

    temperature: float = 1.0
    facts: Mapping[str, Any] | None = None

    def fits(self, labels: Sequence[str], languages: Sequence[str]) -> bool:
        """Whether it was fitted on answers to this question: on these labels or more, asked in these languages."""
        if self.facts is None:
            return False
        known = set(self.facts["label_space"]), set(self.facts["prompt_languages"])
        return set(labels) <= known[0] and set(languages) == known[1]


def store(run: epath.PathLike, step: int, scoring: str, found: Calibration) -> None:
    """Add to RUN/calibration.json what was fitted at `step`; `found.facts` None takes away what stood there."""
    steps = _read(run)
    mine = steps.setdefault(str(step), {})
    mine.pop(scoring, None)
    if found.facts is not None:
        mine[scoring] = {"temperature": found.temperature, **found.facts}
    _write(run, {key: value for key, value in steps.items() if value})


def stored(run: epath.PathLike, step: int, scoring: str) -> Calibration:
    """Read what was fitted at `step` of a run; Calibration() where nothing was.

    Raises:
      ValueError: the file is not what `store` writes.
    """
    found = _read(run).get(str(step), {}).get(scoring)
    if found is None:
        return Calibration()
    wanted = {"temperature", "label_space", "prompt_languages", "utterances"}
    if not isinstance(found, dict) or not wanted <= set(found) or not found["temperature"] > 0:
        raise ValueError(f"{epath.Path(run) / FILE}: step {step}, {scoring}: expected {', '.join(sorted(wanted))}")
    return Calibration(found["temperature"], {key: value for key, value in found.items() if key != "temperature"})


def at_step(run: epath.PathLike, step: int) -> dict[str, Any]:
    """Read all that was fitted at a step, {scoring: JSON as in the file}. Raises ValueError: the file is damaged."""
    return _read(run).get(str(step), {})


def forget_after(run: epath.PathLike, step: int) -> None:
    """Take away what was fitted at later steps than `step`: training goes on from there, to other parameters."""
    steps = _read(run)
    kept = {key: value for key, value in steps.items() if int(key) <= step}
    if len(kept) < len(steps):
        _write(run, kept)


def _read(run: epath.PathLike) -> dict[str, dict[str, Any]]:
    path = epath.Path(run) / FILE
    if not path.exists():
        return {}
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(steps, dict) or not all(key.isdecimal() for key in steps):
            raise ValueError("expected an object of steps")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Remove it, and the next evaluation fits it anew") from error
    return steps


def _write(run: epath.PathLike, steps: Mapping[str, Any]) -> None:
    storage.replace(epath.Path(run) / FILE, json.dumps(steps, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
