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


# The codes of ISO 4217, as banks write them where the sign is not at hand.
_CURRENCIES = _pairs(
    "₫:VND ₽:RUB ₹:INR ₺:TRY ₴:UAH ₩:KRW ₪:ILS ₱:PHP ₦:NGN ₡:CRC ₭:LAK ₮:MNT ₲:PYG ₵:GHS ₸:KZT ₼:AZN ₾:GEL "
    "৳:BDT ฿:THB ៛:KHR ؋:AFN ﷼:IRR ֏:AMD ₿:BTC"
)
_CURRENCY = re.compile("[" + "".join(_CURRENCIES) + "]")
# What Unicode does not decompose, or not as people write it.
_WRITTEN = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02b9\u02bb\u02bc\u02bd\u00b4\u0060\u2039\u203a", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u301d\u301e", '"'),
    **_pairs(
        "\u2212:- \u2022:- \u00b7:. \u2044:/ \u00d7:x ÷:/ ±:+/- ©:(c) ®:(R) →:-> ←:<- ≤:<= ≥:>= ≠:!= ≈:~ ¢:c"
    ),
    **_pairs("đ:d Đ:D ð:d Ð:D þ:th Þ:Th ł:l Ł:L ħ:h Ħ:H \u0131:i œ:oe Œ:OE ő:ö Ő:Ö ű:ü Ű:Ü ẞ:SS ŋ:ng Ŋ:Ng"),
    **_pairs("ə:e Ə:E ŧ:t Ŧ:T ƒ:f ɓ:b ɗ:d ƙ:k Ɓ:B Ɗ:D"),
}


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
    diacritics that the alphabet lacks, and emoji go. What has no such form stays.

    :param keep: a part that stays as it is.
    """
    parts = text.split(keep) if keep else [text]
    return keep.join(_folded(unicodedata.normalize("NFC", part)) for part in parts)


def cut(text: str, size: int) -> str:
    """Return the beginning of a text, marked as one; empty if too little would be left.

    No number is cut: ``Pay 1,000`` must not be what is left of ``Pay 1,000,000``.

    :param size: how many characters to take.
    """
    head = re.sub(r"[\W\d_]+\Z", "", text[:size])
    return f"{head}..." if len(head) >= _LEAST else ""


def _folded(text: str) -> str:
    def code(found: re.Match[str]) -> str:
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        gaps = [" " if beside.isalnum() else "" for beside in (before, after)]
        return _CURRENCIES[found[0]].join(gaps)

    return re.sub(" {2,}", " ", "".join(map(_letter, _CURRENCY.sub(code, text))))


def _letter(character: str) -> str:
    if character in _ALPHABET:
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
    # Joiners, variants, emoji and the colours of their skin.
    if (
        category == "Cf"
        or character in "\ufe0e\ufe0f\u20e3"
        or (category in ("So", "Sk") and character > "\u25ff")
    ):
        return ""
    parts = unicodedata.normalize("NFKD", character)
    plain = "".join(_WRITTEN.get(part, part) for part in parts if unicodedata.category(part) != "Mn")
    return plain if plain and all(c in _ALPHABET for c in plain) else character
