"""Intelligibility: the character error rate between the text and what a Whisper model writes of the audio.

The measure of seed-tts-eval (Anastassiou et al. 2024), which takes Whisper large-v3; any Whisper of the transformers
library will do, but a small one errs by itself, and not equally over languages: calibrate `max_cer` on real speech.
Whisper-base errs in .08 of the characters of real recordings (320 of seven acted corpora in five languages; .15 in
Italian), and .5 rejects 3 % of them. Of espeak-ng it errs in .43 (240 of M5SER-mini, from .22 in English to .66 in
French), and .5 would reject 37 %: the default is for engines that sound like people. On a CPU it takes 0.9 s a second
of audio, as Whisper always hears 30 s; where PyTorch finds a GPU, it is used.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pypinyin

from mser_jax.config import ConfigError
from mser_jax.corpora.audio_check import SAMPLING_RATE
from mser_jax.m5ser.filters.base import Candidate, Verdict
from mser_jax.m5ser.lines import Line

_LANGUAGE_TOKEN = re.compile(r"<\|([a-z]{2,3})\|>")


@dataclasses.dataclass(frozen=True)
class Intelligibility:
    """Rejects what Whisper understands too little of. Languages that it does not know are not judged.

    model: directory or hub id of a multilingual Whisper, with its decoder. max_cer: errors a character of the text.
    """

    model: str = ""
    max_cer: float = 0.5
    batch_size: int = 16
    name = "intelligibility"
    reasons = ("intelligibility",)
    HOW = "e.g. --config.filters.intelligibility.model=openai/whisper-small, or the directory of one"

    def __post_init__(self) -> None:
        """Refuses at the start what would fail in the first chunk."""
        if self.model and importlib.util.find_spec("torch") is None:
            raise ConfigError("filters.intelligibility runs Whisper in PyTorch, which is not here: pip install torch")
        if self.model.startswith(("/", ".", "~")) and not (Path(self.model).expanduser() / "config.json").exists():
            raise ConfigError(f"filters.intelligibility.model={self.model}: no config.json there; {self.HOW}")

    @functools.cached_property
    def _recogniser(self) -> _Whisper:
        return _Whisper(self.model)

    def measure(self, batch: Sequence[Candidate]) -> list[Verdict]:
        """Measures cer. Reason: intelligibility."""
        verdicts = [Verdict(measures={})] * len(batch)
        known = [row for row, item in enumerate(batch) if item.line.text.text and self._recogniser.knows(item.line)]
        for begin in range(0, len(known), self.batch_size):
            rows = known[begin : begin + self.batch_size]
            for row, heard in zip(rows, self._recogniser.transcribe([batch[row] for row in rows]), strict=True):
                cer = character_error_rate(heard, batch[row].line.text.text)
                reason = self.name if cer > self.max_cer else ""
                verdicts[row] = Verdict(measures={"cer": round(cer, 3)}, reason=reason)
        return verdicts


def plain(text: str) -> str:
    """What counts of a text: letters and digits in one case; Han as pinyin without tones, blanks do not count.

    So homophones and traditional characters, which a recogniser may write, are no errors.
    """
    spoken = "".join(pypinyin.lazy_pinyin(unicodedata.normalize("NFKC", text).casefold()))
    return "".join(c for c in unicodedata.normalize("NFC", spoken) if unicodedata.category(c)[0] in "LMN")


def character_error_rate(heard: str, text: str) -> float:
    """Levenshtein distance of both, as `plain`, over the characters of the text; 0 where it has none."""
    source, target = plain(text), plain(heard)
    if not source:
        return 0.0
    letters = np.array([ord(c) for c in target], np.int32)
    steps = np.arange(len(target) + 1)
    costs = steps
    for row, letter in enumerate(source):
        # Substituting or deleting; inserting then is a running minimum along the row.
        without = np.minimum(costs[1:] + 1, costs[:-1] + (letters != ord(letter)))
        costs = np.minimum.accumulate(np.concatenate([[row + 1], without]) - steps) + steps
    return float(costs[-1]) / len(source)


class _Whisper:
    """A Whisper model of the transformers library, greedy, without timestamps."""

    def __init__(self, model: str) -> None:
        import torch
        import transformers

        source = str(Path(model).expanduser()) if model.startswith("~") else model
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            self._model = transformers.WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ConfigError(f"filters.intelligibility.model={model} is no Whisper model: {error}") from error
        self._torch, self._generate = torch, transformers.GenerationMixin.generate
        self._features = transformers.WhisperFeatureExtractor(feature_size=self._model.config.num_mel_bins)
        self._model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        tokens = self._tokenizer.get_vocab()
        self._languages = {found[1]: i for t, i in tokens.items() if (found := _LANGUAGE_TOKEN.fullmatch(t))}
        # <|startoftranscript|>, then the language, then these.
        self._task = [tokens["<|transcribe|>"], tokens["<|notimestamps|>"]]

    def knows(self, line: Line) -> bool:
        """Whether the line's language is one of the model's."""
        return _primary(line.language) in self._languages

    def transcribe(self, batch: Sequence[Candidate]) -> list[str]:
        """What is heard in each; not much more than could be said in its text, as a lost model repeats itself."""
        waveforms = [item.waveform.astype(np.float32) / 32768 for item in batch]
        features = self._features(waveforms, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        features = features.input_features.to(self._model.device)
        room = [2 * len(self._tokenizer(item.line.text.text).input_ids) + 8 for item in batch]
        prompts = [
            [self._model.config.decoder_start_token_id, self._languages[_primary(item.line.language)], *self._task]
            for item in batch
        ]
        everything = self._torch.ones(features.shape[0], features.shape[2], device=self._model.device)
        with self._torch.inference_mode():
            # Not Whisper's own `generate`, which is for recordings of any length and may go over one several times.
            written = self._generate(
                self._model, features, attention_mask=everything,
                decoder_input_ids=self._torch.tensor(prompts, device=self._model.device),
                do_sample=False, num_beams=1, max_length=min(max(room), self._model.config.max_target_positions),
            )  # fmt: skip
        # By its own text, not by the longest of those that happen to be beside it.
        written = [tokens[:own].tolist() for tokens, own in zip(written, room, strict=True)]
        return self._tokenizer.batch_decode(written, skip_special_tokens=True)


def _primary(language: str) -> str:
    return language.partition("-")[0].lower()
