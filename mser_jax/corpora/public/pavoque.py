"""PAVOQUE: one German actor in five styles, every style one long recording.

Facts: Steiner et al. 2013 and https://github.com/marytts/pavoque-data (files, annotation, licence), EmoBox 08280f2
(counts; it takes the outtakes, too).
"""

import math
from collections.abc import Iterator

import tensorflow_datasets as tfds
import yaml
from etils import epath

from mser_jax.corpora import audio_check, source, tables
from mser_jax.corpora.builder import LeftOut, RawUtterance
from mser_jax.corpora.public_corpus import TABLE_REASON, Facts, PublicCorpus


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

    WHOLE = 5442  # without the outtakes, which may come without their sound

    def read(self, folder: epath.Path) -> Iterator[RawUtterance | LeftOut]:
        """Every utterance of every yaml file that has its sound beside it or elsewhere in the source."""
        for annotation in source.files(folder, (".yaml",)):
            name = annotation.name.replace(".yaml", ".flac")
            if not (sounds := source.files(folder, (name,))):
                if "outtakes" not in name:
                    raise FileNotFoundError(f"{folder}: {annotation.name} but no {name}. Get it: {self.FACTS.obtain}")
                yield LeftOut(annotation.name, "outtakes without sound", on_purpose=True)
                continue
            try:
                lines = yaml.load(tables.text(annotation), yaml.CBaseLoader)
            except yaml.YAMLError as error:
                raise tables.TableError(f"{annotation}: no YAML ({' '.join(str(error).split())})") from error
            if not isinstance(lines, list):
                raise tables.TableError(f"{annotation}: expected a list of utterances")
            for number, line in enumerate(lines, start=1):
                yield self._cut(sounds[0], line, f"{annotation}, utterance {number}")

    def _cut(self, sound: epath.Path, line: dict[str, str], where: str) -> RawUtterance | LeftOut:
        """What is cut out of a recording by one entry of the annotation."""
        try:
            start, end = (float(line[name].replace(",", ".")) for name in ("start", "end"))
            prompt, style, text = (str.strip(line[name]) for name in ("prompt", "style", "text"))
            "".join((prompt, style, text)).encode()
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            return LeftOut(where, TABLE_REASON, f"expected prompt, style, text, start and end ({error!r})")
        if not 0 <= start < end < math.inf or not self.is_label(style):
            return LeftOut(where, TABLE_REASON, f"style {style!r} from {start} to {end} s")
        try:
            samples, rate = audio_check.excerpt(sound, start, end)
        except audio_check.BadAudio as bad:
            return LeftOut(prompt, str(bad.reason), f"{sound.name}: {bad.detail}")
        return self.raw(
            id=f"{prompt}-{style}",
            audio=samples,
            sampling_rate=rate,
            speaker="Stefan Röttig",
            gender="male",
            emotion_native=style,
            transcript=text,
            origin=f"{sound.name} {line['start']}–{line['end']} s",
        )
