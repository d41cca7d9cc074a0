"""What a process says of itself: now and then, and at once if it is new."""

from __future__ import annotations

from tests.conftest import watch
from tests.support import inside
from tests.support.stage import Stage


def test_process_says_what_it_serves_if_that_is_new(stage: Stage) -> None:
    stage.app()
    processes, parts = inside.store().processes, {"callbacks": ["one"]}

    def tell() -> None:
        processes.tell_parts("host:1:abcd", parts)

    def heard() -> list[tuple[str, ...]]:
        return [process.queues for process in inside.service().operations.processes()]

    tell()
    assert heard() == [("one",)]
    # It is said once.
    sent, _ = watch(stage.redis, tell)
    assert sent == []
    parts["callbacks"].append("two")
    tell()
    assert heard() == [("one", "two")]
    # Nothing of what was said before is kept.
    assert processes._said == ["host:1:abcd callbacks", processes._said[1]]
    assert len(processes._life_told._last) == 1
