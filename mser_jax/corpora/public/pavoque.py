"""PAVOQUE: one German actor in five styles, every style one long recording.

Facts: Steiner et al. 2013 and https://github.com/marytts/pavoque-data (files, annotation, licence), EmoBox 08280f2
(counts; it takes the outtakes, too).
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds
import yaml
from etils import epath

from mser_jax.corpora import audio_check, source
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import Facts, PublicCorpus


class Pavoque(PublicCorpus):
    """Utterances are cut by the annotation. The outtakes (1,892 of the 7,334) are read where their sound is there."""

    name = "pavoque"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="PAVOQUE corpus of expressive speech",
        languages=("de",),
        utterances=7334,
        hours=12.2,
        speakers=1,
        emotions=("neutral", "happy", "sad", "angry", "poker"),
        license="CC BY-NC-SA 4.0",
        obtain="https://github.com/marytts/pavoque-data (the yaml files, and the flac files of its releases)",
        citation="Steiner et al., The PAVOQUE corpus as a resource for analysis and synthesis of expressive speech",
        folder="pavoque-poker.flac with pavoque-poker.yaml, and the same of angry, happy, neutral, sad (and outtakes)",
    )

    def read(self, folder: epath.Path) -> Iterator[RawUtterance | LeftOut]:
        """Every utterance of every yaml file that has its sound beside it or elsewhere in the source."""
        for annotation in source.files(folder, (".yaml",)):
            name = annotation.name.replace(".yaml", ".flac")
            if not (sounds := source.files(folder, (name,))):
                if "outtakes" not in name:
                    raise FileNotFoundError(f"{folder}: {annotation.name} but no {name}. Get it: {self.FACTS.obtain}")
                yield LeftOut(annotation.name, "outtakes without sound", on_purpose=True)
                continue
            for line in yaml.load(annotation.read_text(encoding="utf-8"), yaml.CBaseLoader):
                try:
                    samples, rate = audio_check.excerpt(sounds[0], float(line["start"]), float(line["end"]))
                except audio_check.BadAudio as bad:
                    yield LeftOut(line["prompt"], str(bad.reason), f"{name}: {bad.detail}")
                    continue
                yield self.raw(
                    id=f"{line['prompt']}-{line['style']}",
                    audio=samples,
                    sampling_rate=rate,
                    speaker="Stefan Röttig",
                    gender="male",
                    emotion_native=line["style"],
                    transcript=line["text"],
                    origin=f"{name} {line['start']}–{line['end']} s",
                )
