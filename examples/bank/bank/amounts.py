"""Amounts, as people write them and as the bank shows them."""

from __future__ import annotations

import re

_CURRENCY = re.compile(r"^(EUR|€) ?| ?(EUR|€)$", re.IGNORECASE)
#: A comma or a point before three digits: the thousands of one country are the decimals of the next.
_AMBIGUOUS = re.compile(r"[1-9][0-9]{0,2}[.,][0-9]{3}")
_CENTS = r"(?:[.,](?P<cents>[0-9]{1,2}|-))?"
#: Thousands apart, by a mark that is not the one before the cents.
_GROUPED = re.compile(
    rf"(?P<whole>[1-9][0-9]{{0,2}}(?P<mark>[.,' ])[0-9]{{3}}(?:(?P=mark)[0-9]{{3}})*)(?!(?P=mark)){_CENTS}"
)
_PLAIN = re.compile(rf"(?P<whole>[0-9]+){_CENTS}")


def euros(cents: int) -> str:
    """Return an amount as it is shown."""
    return f"{cents // 100}.{cents % 100:02} EUR"


def read_euros(text: str) -> int:
    """Return the cents of an amount.

    :param text: as people write it: ``10 €``, ``1,000.50``, ``1.000,50``, ``1 000,5``, ``20,-``.
    :raises ValueError: if it is none, or could be two; its text is for the customer.
    """
    bare = _CURRENCY.sub("", " ".join(text.split()).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    if _AMBIGUOUS.fullmatch(bare):
        whole = re.sub("[.,]", "", bare)
        raise ValueError(f"{bare} can be read in two ways. For the larger one write {whole} or {whole}.00.")
    found = _GROUPED.fullmatch(bare) or _PLAIN.fullmatch(bare)
    if not found or len(bare) > 20:
        raise ValueError("Write the amount in digits, such as 250 or 250.00.")
    whole, cents = re.sub("[^0-9]", "", found["whole"]), (found["cents"] or "").replace("-", "")
    return int(whole) * 100 + int(cents.ljust(2, "0"))
