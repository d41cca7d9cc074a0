"""Whether a form came from a page of this host."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlsplit

from flask import request


def is_own() -> bool:
    """Tell whether the request came from a page of this host (OWASP CSRF Prevention, Fetch Metadata)."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    with suppress(ValueError):
        return urlsplit(request.headers.get("Origin", "")).netloc == request.host
    return False
