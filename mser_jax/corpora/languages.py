"""Language tags of BCP-47: one form a language, so that "EN", "eng" and "en" never count as three."""

from __future__ import annotations

import functools
import locale
import re

# ISO 639-2 (terminology) and 639-1 of every language that has both (iso-codes 4.17). BCP-47 wants the shorter one.
_ISO_639 = """
aar:aa abk:ab ave:ae afr:af aka:ak amh:am arg:an ara:ar asm:as ava:av aym:ay aze:az bak:ba bel:be bul:bg bis:bi
bam:bm ben:bn bod:bo bre:br bos:bs cat:ca che:ce cha:ch cos:co cre:cr ces:cs chu:cu chv:cv cym:cy dan:da deu:de
div:dv dzo:dz ewe:ee ell:el eng:en epo:eo spa:es est:et eus:eu fas:fa ful:ff fin:fi fij:fj fao:fo fra:fr fry:fy
gle:ga gla:gd glg:gl grn:gn guj:gu glv:gv hau:ha heb:he hin:hi hmo:ho hrv:hr hat:ht hun:hu hye:hy her:hz ina:ia
ind:id ile:ie ibo:ig iii:ii ipk:ik ido:io isl:is ita:it iku:iu jpn:ja jav:jv kat:ka kon:kg kik:ki kua:kj kaz:kk
kal:kl khm:km kan:kn kor:ko kau:kr kas:ks kur:ku kom:kv cor:kw kir:ky lat:la ltz:lb lug:lg lim:li lin:ln lao:lo
lit:lt lub:lu lav:lv mlg:mg mah:mh mri:mi mkd:mk mal:ml mon:mn mar:mr msa:ms mlt:mt mya:my nau:na nob:nb nde:nd
nep:ne ndo:ng nld:nl nno:nn nor:no nbl:nr nav:nv nya:ny oci:oc oji:oj orm:om ori:or oss:os pan:pa pli:pi pol:pl
pus:ps por:pt que:qu roh:rm run:rn ron:ro rus:ru kin:rw san:sa srd:sc snd:sd sme:se sag:sg hbs:sh sin:si slk:sk
slv:sl smo:sm sna:sn som:so sqi:sq srp:sr ssw:ss sot:st sun:su swe:sv swa:sw tam:ta tel:te tgk:tg tha:th tir:ti
tuk:tk tgl:tl tsn:tn ton:to tur:tr tso:ts tat:tt twi:tw tah:ty uig:ug ukr:uk urd:ur uzb:uz ven:ve vie:vi vol:vo
wln:wa wol:wo xho:xh yid:yi yor:yo zha:za zho:zh zul:zu
"""
_TWO_LETTERS = dict(pair.split(":") for pair in _ISO_639.split())
_KNOWN = frozenset(_TWO_LETTERS.values())
# What people write instead: ISO 639-2 (bibliographic), former codes, and codes of countries that are no language's.
_OTHERS = {
    "tib": "bo",
    "cze": "cs",
    "wel": "cy",
    "ger": "de",
    "gre": "el",
    "baq": "eu",
    "per": "fa",
    "fre": "fr",
    "arm": "hy",
    "ice": "is",
    "geo": "ka",
    "mac": "mk",
    "mao": "mi",
    "may": "ms",
    "bur": "my",
    "dut": "nl",
    "rum": "ro",
    "slo": "sk",
    "alb": "sq",
    "chi": "zh",
    "iw": "he",
    "in": "id",
    "ji": "yi",
    "jp": "ja",
    "cn": "zh",
    "kr": "ko",
    "cz": "cs",
    "dk": "da",
    "gr": "el",
    "ua": "uk",
    "us": "en",
    "gb": "en",
    "vn": "vi",
    "pk": "ur",
    "ir": "fa",
    "il": "he",
    "at": "de",
    "mx": "es",
    "bd": "bn",
    "mandarin": "zh",
    "cantonese": "yue",
    "farsi": "fa",
    "persian": "fa",
    "bangla": "bn",
    "bengali": "bn",
    "urdu": "ur",
    "swahili": "sw",
    "amharic": "am",
    "malay": "ms",
    "filipino": "fil",
    "tamil": "ta",
    "telugu": "te",
}
_WELL_FORMED = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_EXPECTED = "expected BCP-47 such as 'en', 'zh' or 'pt-BR'"


@functools.lru_cache(maxsize=1024)
def check(tag: str) -> str:
    """Return a tag with the case that BCP-47 recommends after the language ("zh-hans-cn" → "zh-Hans-CN").

    Raises:
      ValueError: not a tag, the language in capitals, a longer code than there is, or two letters that are no language;
        with what to write instead, where that is known.
    """
    hint = f": write {near!r}" if (near := _nearest(tag)) else f"; {_EXPECTED}"
    if tag == "nan":
        # ISO 639-3 of Min Nan; in tables of people's speech it is an empty cell nearly always.
        raise ValueError(
            "language 'nan' is what an empty cell becomes. Name the language (\"und\" where it is unknown); Min Nan is "
            "written with its region, 'nan-TW'"
        )
    if not _WELL_FORMED.fullmatch(tag):
        raise ValueError(f"language {tag[:80]!r} is not BCP-47{hint}")
    first, *rest = tag.split("-")
    if first in _TWO_LETTERS:
        raise ValueError(f"language {tag!r} has a shorter code, which BCP-47 wants{hint}")
    if first in _OTHERS or (len(first) == 2 and first not in _KNOWN):
        raise ValueError(f"language {tag!r}: {first!r} is not a code of a language{hint}")
    return "-".join([first, *map(_cased, rest)])


def _cased(subtag: str) -> str:
    if len(subtag) == 4 and subtag.isalpha():
        return subtag.title()
    return subtag.upper() if len(subtag) == 2 and subtag.isalpha() else subtag.lower()


def _nearest(tag: str) -> str:
    """The tag that was meant, "" where nobody can say."""
    first, *rest = re.split(r"[-_ ]+", tag.strip().lower())
    found = _OTHERS.get(first) or _TWO_LETTERS.get(first) or (first if first in _KNOWN else "")
    if not found and len(first) > 3:
        # The standard library's table of locales has the English (and some own) names of languages.
        found = locale.normalize(first).partition("_")[0]
        found = found if found in _KNOWN else ""
    if not found:
        return ""
    near = "-".join([found, *map(_cased, rest)])
    return near if _WELL_FORMED.fullmatch(near) else found
