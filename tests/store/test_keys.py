"""The names of keys and channels."""

from __future__ import annotations

import fnmatch

import pytest

from flask_taskflow._store.keys import Consumer, Keys


def test_sends_by_a_method_stand_apart_from_callbacks() -> None:
    assert Consumer.sending("EMAIL") == "@EMAIL"
    assert Consumer("@EMAIL").method == "EMAIL"
    assert Consumer("work").method is None


def test_channels_tell_databases_apart_and_keys_do_not() -> None:
    first, second = Keys("shop", 0), Keys("shop", 1)

    assert first.bell != second.bell
    assert first.presence("host:1") != second.presence("host:1")
    assert first.of(first.tag("q"), "pending") == second.of(second.tag("q"), "pending")


@pytest.mark.parametrize("prefix", ["shop", "shop.a-b:c_d"])
def test_pattern_finds_the_keys_of_queues_under_the_prefix_alone(prefix: str) -> None:
    keys, longer = Keys(prefix, 0), Keys(f"{prefix}2", 0)
    (task,) = keys.task(keys.new_id("q"))

    assert fnmatch.fnmatchcase(task, keys.pattern)
    assert not fnmatch.fnmatchcase(keys.queues, keys.pattern)
    assert not fnmatch.fnmatchcase(longer.task(longer.new_id("q"))[0], keys.pattern)
