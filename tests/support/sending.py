"""What the tests of sends share: strategies that are told what to do, an app that stores its sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from flask_taskflow import OutboxStrategy, Retry, Status, Task
from flask_taskflow._service import current_service
from flask_taskflow._store.sends import GivenUp
from flask_taskflow.strategies import Message
from tests.support import inside
from tests.support.stage import Stage

EMAIL, PHONE = "a@example.com", "+84901234567"
BOTH = {"email": EMAIL, "phone_number": PHONE}

Mood = BaseException | type[BaseException] | Callable[[Task[Any], str], object]


class Elaborate(Retry):
    """Work out when to try again from what is not there."""

    headers: ClassVar[dict[str, str]] = {}

    @property
    def after(self) -> float:
        return float(self.headers["Retry-After"])

    @after.setter
    def after(self, value: object) -> None:
        """Keep nothing."""


class Moody(OutboxStrategy):
    """Do what it is told to, attempt by attempt: raise an error, call a function; else keep messages."""

    def __init__(self, messages: list[Message]) -> None:
        super().__init__(messages=messages)
        self.moods: list[Mood | None] = []
        self.codes: list[str] = []

    @property
    def attempts(self) -> int:
        """How often it was to send something."""
        return len(self.codes)

    def send(self, task: Task[Any], otp: str) -> None:
        """Send, unless it is told something else."""
        self.codes.append(str(otp))
        mood = (self.moods.pop(0) if self.moods else None) or self.deliver
        if isinstance(mood, BaseException | type):
            raise mood
        mood(task, otp)

    def deliver(self, task: Task[Any], otp: str) -> None:
        """Send in any case."""
        super().send(task, otp)


class Words(Moody):
    """Make codes that cannot be derived again."""

    code_pattern = "[a-z]{8}"

    def generate(self, task: Task[Any]) -> str:
        """Return another code at each attempt."""
        return "abcdefgh"[self.attempts :] + "z" * self.attempts


class Post(Stage):
    """Apps that store their sends, their two strategies, what these sent, and tasks that need codes."""

    settings: ClassVar[dict[str, Any]] = {"send": "background"}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent: list[Message] = []
        self.email = self.taskflow.register_strategy("EMAIL")(Moody(self.sent))
        self.sms = self.taskflow.register_strategy("SMS")(Moody(self.sent))

    def add_for(self, *methods: str, **options: Any) -> Task[Any]:
        """Add a task that both methods may confirm, or only those that are named."""
        return self.add(**{"allowed_methods": methods or ("EMAIL", "SMS"), "recipient": BOTH, **options})

    def resend(self, task: Task[Any], method: str = "EMAIL") -> None:
        """Ask for a code again."""
        self.taskflow.resend_otp(task.id, method)

    def waiting(self) -> list[str]:
        """Return the keys of sends that are not done."""
        return self.keys("h:@*")

    def status(self, task: Task[Any]) -> Status:
        """Return what Redis says of a task."""
        return self.taskflow.get_task(task.id).status

    def confirms(self, task: Task[Any], method: str = "EMAIL", message: int = -1) -> bool:
        """Tell whether the code of a message, the last one by default, confirms a task."""
        otp = self.sent[message].otp
        return self.taskflow.verify(task.id, method, otp).status is Status.SUCCESS

    def claim(self, method: str = "EMAIL") -> int:
        """Claim a send and return its token, as a process does that tells nothing more."""
        (item,) = inside.store(method).claim("q", [f"@{method}"], 1).deliveries
        return item.token

    def give_up(self, task: Task[Any], token: int, *methods: str) -> GivenUp | None:
        """Report a send by e-mail as given up; these methods could send."""
        service = current_service()
        new = [service.sender.new_code(task.id, method) for method in methods]
        return service.runtime.engines.codes.give_up(task.id, token, "EMAIL", new, [])
