"""ASVP-ESD with the sounds that are not speech; facts in asvp_esd.py."""

import dataclasses
import re
from typing import Any

import tensorflow_datasets as tfds

from mser_jax.corpora.builder import RawUtterance
from mser_jax.corpora.public.asvp_esd import NO_LANGUAGE, AsvpEsd


class AsvpEsdAll(AsvpEsd):
    """All 13,964 files, .14 to 86 s, as EmoBox has them; asvp_esd is part of it, so take one of the two.

    What is not speech has the language "zxx", by which it can be left out.
    """

    name = "asvp_esd_all"
    VERSION = tfds.core.Version("1.0.0")
    FACTS = dataclasses.replace(
        AsvpEsd.FACTS,
        title="Audio, Speech and Vision Processing Lab Emotional Sound database, speech and other sounds",
        languages=(*AsvpEsd.FACTS.languages, NO_LANGUAGE),
        utterances=13964,
        hours=17.98,
        speakers=131,
    )
    IGNORED = {}  # noqa: RUF012

    def raw(self, match: re.Match[str] | None = None, **fields: Any) -> RawUtterance:
        """As asvp_esd's: who was trained on one has seen the other."""
        return super().raw(match, corpus=AsvpEsd.name, **fields)
