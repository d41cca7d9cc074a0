"""Where a code could leak to, and the forms that it could have there."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any, cast

from redis import Redis


def everything(redis: Redis) -> list[bytes]:
    """Return every string in Redis: names, fields, members, values."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": lambda key: [redis.get(key)],
        b"hash": lambda key: [part for pair in redis.hgetall(key).items() for part in pair],
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"set": lambda key: list(redis.smembers(key)),
        b"list": lambda key: redis.lrange(key, 0, -1),
    }
    keys = cast(list[bytes], redis.keys("*"))
    return [*keys, *(part for key in keys for part in read[cast(bytes, redis.type(key))](key))]


def disguises(code: str) -> dict[str, bytes]:
    """Return a code in the forms that people store codes in, and take for safe."""
    raw = code.encode()
    forms = {"code": raw, "reversed": raw[::-1], "base64": base64.b64encode(raw).rstrip(b"=")}
    forms |= {"base32": base64.b32encode(raw).rstrip(b"="), "hex": raw.hex().encode()}
    forms |= {"number": str(int(code)).encode(), "hex number": f"{int(code):x}".encode()}
    for order in ("big", "little"):
        forms[f"{order} endian"] = int(code).to_bytes(8, order)
    for name in ("md5", "sha1", "sha256", "sha512", "blake2b"):
        digest = hashlib.new(name, raw).digest()
        forms |= {name: digest, f"{name} hex": digest.hex().encode()}
        forms[f"{name} base64"] = base64.b64encode(digest).rstrip(b"=")
    return forms


def leaks_in(text: bytes, code: str) -> list[str]:
    """Return the forms of a code that stand in a text, in whatever case."""
    return [name for name, form in disguises(code).items() if form.lower() in text.lower()]
