"""What one text message holds, and what can be written in its alphabet without loss to a reader."""

from __future__ import annotations

import re
import unicodedata

# 3GPP TS 23.038, 6.2.1: the default alphabet, and its extension, whose characters count twice.
BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§"
    "¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENSION = frozenset("\f^{}\\[~]|€")
_ALPHABET = BASIC | EXTENSION
#: What one message holds: septets of GSM-7, or else UTF-16 units.
GSM_MAX, UCS_MAX = 160, 70
#: A summary of which less would be left is not worth its room.
_LEAST = 8


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(":", 1) for pair in text.split())


# The codes of ISO 4217, as banks write them where the sign is not at hand. ﷼ is the sign of several.
_CURRENCIES = _pairs(
    "₫:VND ₽:RUB ₹:INR ₺:TRY ₴:UAH ₩:KRW ₪:ILS ₱:PHP ₦:NGN ₡:CRC ₭:LAK ₮:MNT ₲:PYG ₵:GHS ₸:KZT ₼:AZN ₾:GEL "
    "৳:BDT ฿:THB ៛:KHR ؋:AFN ﷼:Rial ֏:AMD ₿:BTC"
)
_CURRENCY = re.compile("[" + "".join(_CURRENCIES) + "]")
# What Unicode does not decompose, or not as people write it.
_WRITTEN = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02b9\u02bb\u02bc\u02bd\u00b4\u0060\u2039\u203a", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u301d\u301e", '"'),
    **_pairs("\u2212:- \u2022:- \u2044:/ \u00d7:x ÷:/ ±:+/- ©:(c) ®:(R) →:-> ←:<- ≤:<= ≥:>= ≠:!= ≈:~ ¢:c"),
    **_pairs("đ:d Đ:D ð:d Ð:D þ:th Þ:Th ł:l Ł:L ħ:h Ħ:H \u0131:i œ:oe Œ:OE ő:ö Ő:Ö ű:ü Ű:Ü ẞ:SS ŋ:ng Ŋ:Ng"),
    **_pairs("ə:e Ə:E ŧ:t Ŧ:T ƒ:f ɓ:b ɗ:d ƙ:k Ɓ:B Ɗ:D"),
}
# Between digits it is a decimal point to some and a sign of multiplication to others.
_MIDDLE_DOT = re.compile("(?<!\\d)\u00b7|\u00b7(?!\\d)")
_SCRIPT = re.compile("[\u00b2\u00b3\u00b9\u2070\u2074-\u207e]+|[\u2080-\u208e]+")
# Where a number may not run into another one. No text has it then: it is among what nobody sees.
_EDGE = "\ufe0f"
_BETWEEN = re.compile(f"(?<=\\d){_EDGE}*([.,]?){_EDGE}+([.,]?)(?=\\d)")


def length(text: str) -> tuple[int, int, str]:
    """Return how much of a message a text takes, how much there is, and of what."""
    if all(c in _ALPHABET for c in text):
        return len(text) + sum(c in EXTENSION for c in text), GSM_MAX, "septets of GSM-7"
    return len(text.encode("utf-16-le", "surrogatepass")) // 2, UCS_MAX, "units of UCS-2"


def too_long(text: str, *, secret: str = "") -> str | None:
    """Return why a text takes more than one message, ``None`` if it does not.

    :param secret: a part whose characters are not to be named.
    """
    units, limit, what = length(text)
    if units <= limit:
        return None
    reason = f"{units} of {limit} {what}"
    if limit == GSM_MAX:
        return reason
    foreign = "".join(dict.fromkeys(c for c in text if c not in _ALPHABET and c not in secret))
    return f"{reason}, because GSM-7 has no {foreign[:5]!r} (without such characters {GSM_MAX} fit)"


def fitted(text: str, code: str) -> str | None:
    """Return a text as it fits in one message: as it is, or in GSM-7; ``None`` if it does not.

    :param code: a part that stays as it is.
    """
    for candidate in (text, fold(text, keep=code)):
        if too_long(candidate) is None:
            return candidate
    return None


def fold(text: str, *, keep: str = "") -> str:
    """Return a text with what GSM-7 has, wherever a reader would not mind.

    Quotation marks, dashes and blanks become plain, signs of currencies their codes, Latin letters lose the
    diacritics that the alphabet lacks, and emoji go. What has no such form stays. No number becomes another
    one: ``1½`` is ``1 1/2``, and ``10⁶`` is ``10^6``.

    :param keep: a part that stays as it is.
    """
    parts = text.split(keep) if keep else [text]
    return keep.join(_folded(unicodedata.normalize("NFC", part)) for part in parts)


def cut(text: str, size: int) -> str:
    """Return the beginning of a text, marked as one; empty if too little would be left.

    No number is cut: ``Pay 1,000`` must not be what is left of ``Pay 1,000,000``.

    :param size: how many characters to take.
    """
    letters = [at for at, character in enumerate(text[:size], 1) if character.isalpha()]
    head = text[: max(letters, default=0)]
    return f"{head}..." if len(head) >= _LEAST else ""


def _folded(text: str) -> str:
    seen = _CURRENCY.sub(_code, "".join(c for c in text if not _is_hidden(c)))
    letters = "".join(map(_letter, _SCRIPT.sub(_script, seen)))
    whole = _BETWEEN.sub(r"\1 \2", letters).replace(_EDGE, "")
    return re.sub(" {2,}", " ", _MIDDLE_DOT.sub(".", whole))


def _is_hidden(character: str) -> bool:
    """Tell whether it is a joiner or a variant, which nobody sees."""
    return unicodedata.category(character) == "Cf" or character in "\ufe0e\ufe0f"


def _code(found: re.Match[str]) -> str:
    gaps = [" " if beside.isalnum() else "" for beside in _beside(found)]
    return _CURRENCIES[found[0]].join(gaps)


def _script(found: re.Match[str]) -> str:
    """Return superscripts or subscripts in plain digits: ``m2``, but ``10^6`` and ``101_2``."""
    before, after = _beside(found)
    of_number = (before.isnumeric() or before == ")") and after not in ("/", "\u2044")
    mark = ("_" if found[0] >= "\u2080" else "^") if of_number else _EDGE
    return f"{mark}{_decomposed(found[0])}{_EDGE}"


def _beside(found: re.Match[str]) -> tuple[str, str]:
    return found.string[: found.start()][-1:], found.string[found.end() :][:1]


def _letter(character: str) -> str:
    if character in _ALPHABET or character == _EDGE:
        return character
    if character in _WRITTEN:
        return _WRITTEN[character]
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    if category == "Pd":
        return "-"
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if character == "\u20e3" or _is_picture(character, category):
        return _EDGE
    plain = _decomposed(character)
    if not plain or not all(c in _ALPHABET for c in plain):
        return character
    return f"{_EDGE}{plain}{_EDGE}" if any(map(str.isdigit, plain)) else plain


def _is_picture(character: str, category: str) -> bool:
    """Tell whether it is an emoji or the colour of its skin; ``㎡`` is none."""
    return category in ("So", "Sk") and character > "\u25ff" and not unicodedata.decomposition(character)


def _decomposed(text: str) -> str:
    parts = unicodedata.normalize("NFKD", text)
    return "".join(_WRITTEN.get(part, part) for part in parts if unicodedata.category(part) != "Mn")
