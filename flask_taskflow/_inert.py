"""Text that a stranger may have written, made harmless for a terminal and for a log (CWE-117, CWE-150)."""

from __future__ import annotations

import unicodedata

#: Controls, line breaks, what reorders or hides text, and halves of surrogate pairs.
_ACTIVE = ("Cc", "Cf", "Cs", "Zl", "Zp")
#: People's languages and emoji need these joiners, which act on their neighbours only.
_JOINERS = "\u200c\u200d"


def inert(text: object) -> str:
    """Return a text in which what a terminal or a log would act on is written as an escape: ``\\x1b``.

    :param text: anything; its ``str`` counts.
    """
    told = str(text)
    # Most texts are names: they need no second look.
    if told.isascii() and told.isprintable():
        return told
    return "".join(map(_shown, told))


def _shown(character: str) -> str:
    if character not in _JOINERS and unicodedata.category(character) in _ACTIVE:
        return character.encode("unicode_escape").decode()
    return character
