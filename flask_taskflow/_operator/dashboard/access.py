"""Who may see the dashboard, and who may act there: the app says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError

#: What an app's ``access(request)`` may answer, each level with what the ones before it allow.
LEVELS = ("none", "read", "operate")
Access = Callable[[Any], Any]

NO_ACCESS = """create_dashboard() needs access=..., a function that says who may use it. With Flask-Login:
def access(request):
    staff = current_user.is_authenticated and current_user.is_staff
    return (current_user.get_id(), "operate") if staff else "none"
"""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at the dashboard.

    :param name: for the audit log.
    :param level: one of :data:`LEVELS`.
    """

    name: str
    level: str

    @classmethod
    def read(cls, answer: object) -> Visitor:
        """Return whom an app's answer means.

        :param answer: a level, or a name and a level.
        :raises ConfigError: if it is neither.
        """
        name, level = answer if isinstance(answer, tuple) and len(answer) == 2 else ("dashboard", answer)
        if not isinstance(name, str) or level not in LEVELS:
            allowed = ", ".join(map(repr, LEVELS))
            raise ConfigError(f"access(request) must answer one of {allowed}, or (name, one of them)")
        return cls(name, level)

    def may(self, level: str) -> bool:
        """Tell whether this one has a level, or one above it."""
        return LEVELS.index(self.level) >= LEVELS.index(level)
