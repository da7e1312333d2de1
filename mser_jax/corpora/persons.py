"""Gender and age of speakers as corpora write them: read by table, never guessed from a letter they start with."""

from __future__ import annotations

import re
import unicodedata

GENDERS = ("female", "male", "other")
MAX_AGE = 120  # years

# gender -> language (or kind of code) -> comma-separated words. Case and accents do not matter. Single letters are
# those that mean one gender wherever they are used: h is hombre or homme, w is woman or weiblich.
_WORDS: dict[str, dict[str, str]] = {
    "female": {
        "codes": "f, w, fem, fema, ♀, (f)",
        "en": "female, woman, girl, lady, females, women, feminine",
        "af": "vroulik, vrou",
        "ar": "أنثى, انثى, امرأة, مؤنث, بنت",
        "bg": "жена, женски, женски пол",
        "bn": "মহিলা, নারী, মেয়ে",
        "cs": "žena, ženský, ženské",
        "da": "kvinde, kvindelig",
        "de": "weiblich, Frau, Mädchen, weibl",
        "el": "γυναίκα, θηλυκό, γυναικείο",
        "es": "mujer, femenino, femenina, hembra, chica, niña",
        "et": "naine, naissoost",
        "fa": "زن, مؤنث, مونث, دختر",
        "fi": "nainen, naispuolinen, tyttö",
        "fr": "femme, féminin, féminine, fille",
        "he": "נקבה, אישה",
        "hi": "महिला, स्त्री, औरत, लड़की",
        "hr": "žensko, ženska, ženski",
        "hu": "nő, női",
        "id": "perempuan, wanita",
        "it": "femmina, donna, femminile, ragazza",
        "ja": "女性, 女, 女子",
        "ko": "여성, 여자, 여",
        "lt": "moteris, moteriška",
        "lv": "sieviete, sievietes",
        "nl": "vrouw, vrouwelijk, meisje",
        "no": "kvinne, kvinnelig",
        "pl": "kobieta, żeńska, żeński, kobiecy",
        "pt": "mulher, feminino, feminina, moça",
        "ro": "femeie, feminin, femeiesc",
        "ru": "женский, женщина, жен, ж, девушка",
        "sk": "ženské pohlavie",
        "sr": "женско, женска",
        "sv": "kvinna, kvinnlig",
        "sw": "mwanamke",
        "ta": "பெண்",
        "te": "స్త్రీ, మహిళ",
        "th": "หญิง, ผู้หญิง",
        "tr": "kadın, bayan, kız",
        "uk": "жінка, жіноча, жіночий, жіноча стать",
        "ur": "عورت, خاتون",
        "vi": "nữ, đàn bà, phụ nữ",
        "zh": "女人, 女生, 女的, 女声, 女聲",
    },
    "male": {
        "codes": "m, h, masc, ♂, (m)",
        "en": "male, man, boy, gentleman, males, men, masculine, guy",
        "af": "manlik",
        "ar": "ذكر, رجل, مذكر, ولد",
        "bg": "мъж, мъжки",
        "bn": "পুরুষ, ছেলে",
        "cs": "muž, mužský, mužské",
        "da": "mand, mandlig",
        "de": "männlich, Mann, Junge, männl",
        "el": "άνδρας, άντρας, αρσενικό, ανδρικό",
        "es": "hombre, masculino, masculina, varón, chico, niño",
        "et": "mees, meessoost",
        "fa": "مرد, پسر",
        "fi": "mies, miespuolinen, poika",
        "fr": "homme, masculin, garçon",
        "he": "זכר, גבר",
        "hi": "पुरुष, आदमी, लड़का",
        "hr": "muško, muška, muški, muškarac",
        "hu": "férfi, férfias",
        "id": "laki-laki, pria, laki, lelaki",
        "it": "maschio, uomo, maschile, ragazzo",
        "ja": "男性, 男, 男子",
        "ko": "남성, 남자, 남",
        "lt": "vyras, vyriška",
        "lv": "vīrietis, vīrietes",
        "nl": "mannelijk, jongen",
        "no": "mannlig",
        "pl": "mężczyzna, męska, męski",
        "pt": "homem, menino, moço",
        "ro": "bărbat, masculin, bărbătesc",
        "ru": "мужской, мужчина, муж, м, юноша",
        "sk": "mužské pohlavie",
        "sr": "мушко, мушка, мушкарац",
        "sv": "manlig, kille",
        "sw": "mwanamume, mwanaume",
        "ta": "ஆண்",
        "te": "పురుషుడు",
        "th": "ชาย, ผู้ชาย",
        "tr": "erkek, bay",
        "uk": "чоловік, чоловіча, чоловічий, чоловіча стать",
        "ur": "مرد, آدمی",
        "vi": "nam, đàn ông",
        "zh": "男人, 男生, 男的, 男声, 男聲",
    },
    "other": {
        "codes": "o, x, nb, d",
        "en": "other, non-binary, nonbinary, diverse, genderqueer, agender, intersex, trans, enby",
        "de": "divers, nichtbinär, nicht-binär, anderes",
        "es": "otro, otra, no binario, no binaria",
        "fr": "autre, non binaire",
        "it": "altro, non binario",
        "nl": "anders, non-binair",
        "pl": "inna, niebinarna",
        "pt": "outro, outra, não binário",
        "ru": "другой, другое",
        "zh": "其他",
    },
}
# Written where nothing is known.
UNKNOWN = frozenset(
    ("unknown", "unk", "unspecified", "undefined", "none", "null", "nan", "na", "n/a", "<na>", "?", "-", "--", ".")
)
_RANGE = re.compile(r"(\d{1,3})\s*[-–—]\s*(\d{1,3})")
_YEARS = re.compile(r"(-?\d+(?:\.\d+)?)\s*(?:years?|yrs?|y\.?o\.?|y)?(?: old)?", re.I)


def _plain(word: str) -> str:
    """Case folded, accents of Latin letters gone (of other scripts they are letters), one blank between words."""
    decomposed = unicodedata.normalize("NFD", word.casefold())
    plain = re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", decomposed).replace("ı", "i")
    return " ".join(unicodedata.normalize("NFC", plain).replace("_", " ").split())


_GENDER_OF = {
    _plain(word): gender for gender, languages in _WORDS.items() for words in languages.values()
    for word in words.split(", ")
}  # fmt: skip


def gender(word: str) -> str | None:
    """Return one of GENDERS for a word of the table, "" where it says unknown, None for any other word."""
    plain = _plain(word)
    return "" if not plain or plain in UNKNOWN else _GENDER_OF.get(plain)


def age(text: str) -> str | None:
    """Return years as text: "30.0" → "30"; ranges and words ("20-29", "adult") stay; "" for unknown.

    None for what is no age of a person: below 0 (as for −1: not known), above MAX_AGE.
    """
    plain = " ".join(text.split())
    if not plain or plain.casefold() in UNKNOWN:
        return ""
    if match := _RANGE.fullmatch(plain):
        return f"{int(match[1])}-{int(match[2])}" if int(match[1]) <= int(match[2]) <= MAX_AGE else None
    try:
        years = float(match[1] if (match := _YEARS.fullmatch(plain)) else plain)
    except ValueError:
        return None if re.fullmatch(r"[-+.,\d\s]*\d[-.,\d\s]*", plain) else plain
    return f"{years:g}" if 0 < years <= MAX_AGE else None
