"""Probabilities that mean what they say: a label's prior taken out, a temperature fitted, both on other utterances.

Prior calibration (Zhao et al. 2021, arXiv 2102.09690; Holtzman et al. 2021, arXiv 2104.08315): an LLM likes some
words whatever it hears. What it says of audio without content is subtracted from what it says of speech.
Temperature scaling (Guo et al. 2017, arXiv 1706.04599): one number for all labels; it moves confidence, never answers.
"""

from __future__ import annotations

import numpy as np
import scipy
from scipy.special import log_softmax, softmax

from mser_jax.evaluation import finite

# A dev set that is answered without an error has no best temperature: the search ends here.
TEMPERATURES = (0.05, 20.0)
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


def fit_temperature(probabilities: np.ndarray, references: np.ndarray) -> float:
    """The temperature within TEMPERATURES that makes the references most likely.

    The likelihood is concave in 1 / temperature, so there is one best.

    Args:
      probabilities: [n, labels] of utterances that are not scored.
      references: label ids int [n].

    Raises:
      ValueError: nothing to fit on.
      NotFiniteError: probabilities that are not finite.
    """
    finite.check(probabilities, "probabilities to fit a temperature on")
    if not len(references):
        raise ValueError("no utterance to fit a temperature on")
    low, high = np.log(TEMPERATURES)
    best = scipy.optimize.minimize_scalar(
        lambda x: negative_log_likelihood(probabilities, references, np.exp(x)), bounds=(low, high), method="bounded"
    )
    return float(np.exp(best.x))
