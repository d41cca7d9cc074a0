"""A mailbox: one address, however it is spelt, in the form that mail servers take.

Python's codec ``idna`` follows the standard of 2003, by which ``straße.example`` is ``strasse.example``:
another domain, which may be a stranger's. So domains are mapped as browsers do it, by UTS #46 without its
transitional processing.
"""

from __future__ import annotations

import re
import unicodedata

# RFC 5321, 4.5.3.1: octets of a local part, and of a path without its brackets.
_LOCAL_MAX, _ADDRESS_MAX = 64, 254
# RFC 1035, 2.3.4: octets of a label, and of a name without its root.
_LABEL_MAX, _DOMAIN_MAX = 63, 253

_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+")
# The underscore is against the rule for hosts, and there are mail domains with it.
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
#: UTS #46, 4: what nobody sees is left out.
_IGNORED = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2064\u206a-\u206f\ufe00-\ufe0f\ufeff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0100-\U000e01ef]"
)
#: UTS #46, 6: what the standards of 2003 and 2008 see differently stays as it is.
_DEVIATIONS = {"\u1e9e": "ß", **{c: c for c in "ßς\u200c\u200d"}}
_NON_JOINER, _JOINER = "\u200c\u200d"
_VIRAMA = 9


def read_mailbox(address: str) -> tuple[str, str]:
    """Return the local part and the domain of an address, each in the one form that is sent.

    :param address: one address without a name, brackets or quotes.
    :raises ValueError: if no mail can be sent there; the text says why, and quotes nothing.
    """
    name, at, domain = address.rpartition("@")
    if not at:
        raise ValueError("it has no @")
    local, domain = _local_part(name), ascii_domain(domain)
    if len(f"{local}@{domain}".encode()) > _ADDRESS_MAX:
        raise ValueError(f"it is longer than {_ADDRESS_MAX} bytes")
    return local, domain


def _local_part(name: str) -> str:
    # Letters as wide as Chinese ones come from keyboards: no mailbox is called so.
    plain = unicodedata.normalize("NFKC", name)
    local = plain if plain.isascii() else unicodedata.normalize("NFC", name)
    atoms = local.split(".")
    # Two dots in a row are against the rule, and providers in Japan gave such mailboxes away.
    if not (atoms[0] and atoms[-1] and all(_is_atom(atom) for atom in atoms if atom)):
        raise ValueError(
            "the part before the @ begins or ends with a dot, or has a character that it cannot have"
        )
    if len(local.encode()) > _LOCAL_MAX:
        raise ValueError(f"the part before the @ is longer than {_LOCAL_MAX} bytes")
    return local


def _is_atom(text: str) -> bool:
    ascii_ = "".join(c for c in text if c.isascii())
    foreign = (c for c in text if not c.isascii())
    return (not ascii_ or bool(_ATOM.fullmatch(ascii_))) and not any(map(_is_unseen, foreign))


def _is_unseen(character: str) -> bool:
    """Tell whether a character is a control, a space or a surrogate; one not assigned yet may be a letter."""
    category = unicodedata.category(character)
    return category[0] in "CZ" and category != "Cn"


def ascii_domain(text: str) -> str:
    """Return a domain in its ASCII form, in lower case and without a dot at its end.

    :raises ValueError: if mail can be sent to no such domain; the text says why, and quotes nothing.
    """
    domain = text.lower() if text.isascii() else _mapped(text)
    labels = domain.removesuffix(".").split(".")
    domain = ".".join(map(_ascii_label, labels))
    # RFC 5321, 2.3.5: only full names; RFC 6761, 6.3: this one needs no more.
    if len(labels) < 2 and domain != "localhost":
        raise ValueError("its domain is not a full name, such as example.com")
    if labels[-1].isdecimal():
        raise ValueError("its domain ends in a number, as none does")
    if len(domain) > _DOMAIN_MAX:
        raise ValueError(f"its domain is longer than {_DOMAIN_MAX} bytes")
    return domain


def _mapped(text: str) -> str:
    """Return a domain as UTS #46, 4 maps it."""
    folded = (_DEVIATIONS.get(c) or unicodedata.normalize("NFKC", c).casefold() for c in text)
    return unicodedata.normalize("NFKC", _IGNORED.sub("", "".join(folded))).replace("\u3002", ".")


def _ascii_label(label: str) -> str:
    if not label.isascii():
        if not _is_label(label):
            raise ValueError("its domain has a character that no domain has")
        label = "xn--" + label.encode("punycode").decode("ascii")
    if not _LABEL.fullmatch(label) or len(label) > _LABEL_MAX:
        raise ValueError(
            f"each part of its domain must have 1 to {_LABEL_MAX} letters, digits and hyphens within"
        )
    return label


def _is_label(label: str) -> bool:
    if unicodedata.category(label[0])[0] == "M":
        return False
    for at, character in enumerate(label):
        if character in (_NON_JOINER, _JOINER):
            if not _joins(label, at):
                return False
        elif _is_unseen(character) or (character.isascii() and not _LABEL.fullmatch(f"a{character}a")):
            return False
    return True


def _joins(label: str, at: int) -> bool:
    """Tell whether a joiner stands where it shapes letters: RFC 5892, A.1 and A.2."""
    before, after = label[:at], label[at + 1 :]
    if before and unicodedata.combining(before[-1]) == _VIRAMA:
        return True
    beside = (before[-1:], after[:1])
    return label[at] == _NON_JOINER and all(c and unicodedata.bidirectional(c) == "AL" for c in beside)
