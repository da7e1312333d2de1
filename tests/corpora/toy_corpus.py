"""A corpus of tones for tests (in a module of its own: TFDS looks the module of a builder up)."""

import numpy as np
import tensorflow_datasets as tfds

from mser_jax.corpora import builder


def tone(seconds=0.5, hz=200.0, rate=16_000, seed=0):
    """Harmonic tone with a little noise, float32 [time]."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * hz * time) + 0.002 * noise).astype(np.float32)


class ToneCorpus(builder.CorpusBuilder):
    """Yields `items`, set on the instance; counts how often it is asked."""

    VERSION = tfds.core.Version("1.0.0")
    items = ()
    asked = 0

    def raw_utterances(self):
        self.asked += 1
        yield from self.items

    def expected_count(self):
        return len(self.items)


def item(number, **changes):
    """A good item, changed where asked."""
    values = {
        "id": f"u{number}",
        "audio": tone(seed=number),
        "sampling_rate": 16_000,
        "language": "de",
        "corpus": "tones",
        "speaker": f"s{number % 3}",
        "emotion_native": "Wut",
        "transcript": "guten Tag",
    }
    return builder.RawUtterance(**(values | changes))
