"""A task that is not there: by it, an unknown id takes as long as a task whose code a device makes."""

from __future__ import annotations

from collections.abc import Mapping

from .._keyring import Keyring
from .._tasks import Recipient, Task
from .limits import Limits
from .records import Draft, dump_fixed, dump_task, read_task

_ID = "decoy234" + "a" * 26
#: How long it seems to live, in seconds.
_TTL = 600.0


class Decoys:
    """Decoys of a process, by method.

    :param keyring: seals them, as it does those of tasks.
    :param limits: as of tasks.
    """

    def __init__(self, keyring: Keyring, limits: Limits) -> None:
        self._keyring = keyring
        self._limits = limits
        self._stored: dict[str, Mapping[str, str]] = {}

    def stored(self, method: str) -> Mapping[str, str]:
        """Return the strings that one would be stored as."""
        if method not in self._stored:
            self._stored[method] = self._made(method)
        return self._stored[method]

    def read(self, stored: Mapping[str, str]) -> Task[None]:
        """Return one from its strings; that takes as long as it takes for a task."""
        return read_task(_ID, stored, self._keyring.now_ms(), self._keyring, self._limits)

    def _made(self, method: str) -> Mapping[str, str]:
        fixed = dump_fixed(
            queue="decoy",
            data='{"n":1}',
            summary=None,
            allowed_methods=(method,),
            priority=0,
            timeout=300.0,
        )
        draft = Draft(
            id=_ID,
            queue="decoy",
            fixed=fixed,
            recipient=Recipient(email="decoy@example.com", device_id="decoy"),
            methods={method: "device_id"},
            devices=frozenset([method]),
            priority=0,
            ttl=_TTL,
            named=(),
        )
        now = self._keyring.now_ms()
        times = {"created": str(now), "expires": str(now + int(_TTL * 1000)), f"{method}.next": str(now)}
        sent = {
            f"{method}.{what}": self._keyring.seal("decoy", what) for what in ("nonce", "digest", "issued")
        }
        counts = {"sends": "0", f"{method}.sends": "1", f"{method}.out": "1", f"{method}.until": str(now)}
        return {**dump_task(draft, self._keyring), **times, **counts, **sent}
