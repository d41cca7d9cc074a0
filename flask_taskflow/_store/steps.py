"""Run the Lua steps, pack their arguments, read their words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any, NoReturn

from hiredis import pack_command
from redis import Redis
from redis.exceptions import NoScriptError, ReadOnlyError

from .. import errors
from .._keyring import key_missing
from .._tasks import Status

#: What a step takes.
Argument = str | int | bytes | Sequence[str | int | bytes]
_ONE = (str, int, bytes)

#: Found once, at the import: that takes a lock of the import system, which a thread must not hold while
#: another forks.
_LUA = files(__package__) / "lua"
_NEEDS = re.compile(r"^-- Needs: (.+)$", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*\n", re.MULTILINE)
#: A shared part is a row of definitions.
_DEFINITION = re.compile(r"^(?=local |function )", re.MULTILINE)
_DEFINED = re.compile(r"(?:local )?function (?P<function>[\w.]+)|local (?P<locals>\w+(?:, \w+)*)")


class Steps:
    """The steps of ``lua/``, on one client.

    :param client: answers bytes and does not retry.
    :param retention: how long the course of a task is kept after its last entry, ms.
    """

    def __init__(self, client: Redis, retention: int = 0) -> None:
        #: For what takes one plain command instead of a step; redis-py does not tell what those answer.
        self.client: Any = client
        #: A cluster's client alone knows which node is asked.
        self._pool: Any = client.connection_pool if isinstance(client, Redis) else None
        self._retention = retention

    def run(self, step: str, keys: Sequence[str], *args: Argument) -> list[Any]:
        """Run a step and return its reply, the leading word decoded.

        :param step: its path under ``lua/``, as ``tasks/verify``.
        :param args: what it takes, in order; a list is passed as its length and its items.
        :raises redis.RedisError: if Redis could not be reached or did not answer in time; the step may
            have had its effect once.
        """
        if counts(step):
            keys = [*keys, *_counters_of(keys[0])]
            args = (*args, self._retention)
        words = (len(keys), *keys, *_packed(args))
        try:
            reply = self._evaluate(step, words)
        except ReadOnlyError:
            # A planned fail-over behind one address: the old primary lives on, and keeps its connections.
            if self._pool is not None:
                self._pool.disconnect()
            raise
        return [reply[0].decode(), *reply[1:]]

    def _evaluate(self, step: str, words: Sequence[str | int | bytes]) -> list[Any]:
        by_name, text = ("EVALSHA", digest_of(step), *words), text_of(step)
        try:
            return self._execute(*by_name)
        except NoScriptError:
            # A cluster would load it on all primaries, and fail if one of them is away.
            if self._pool is not None:
                self.client.script_load(text)
                with suppress(NoScriptError):
                    return self._execute(*by_name)
            # The scripts were flushed once more, between loading and running.
            return self._execute("EVAL", text, *words)

    def _execute(self, *words: Any) -> list[Any]:
        reply: list[Any]
        if self._pool is None:
            reply = self.client.execute_command(*words)
            return reply
        # What redis-py does beside this takes longer than the way to the server and back: it measures, and
        # repeats, which no step may be.
        connection = self._pool.get_connection()
        try:
            # It closes itself after an error of its own.
            connection.send_packed_command([pack_command(words)])
            reply = connection.read_response()
            return reply
        finally:
            self._pool.release(connection)

    def succeed(self, step: str, keys: Sequence[str], *args: Argument) -> list[Any]:
        """Run a step that must answer ``ok``, and return what it answered after that.

        :raises TaskFlowError: if it answered another word, the one that the word stands for.
        """
        word, *reply = self.run(step, keys, *args)
        if word != "ok":
            refuse(word, reply)
        return reply


@cache
def counts(step: str) -> bool:
    """Tell whether a step tells what happens: its queue's counters, and the retention, come last."""
    return "local counters_key, history_key = " in text_of(step)


def _counters_of(key: str) -> list[str]:
    """Return the keys of what a queue counts, and of what it counted by the minute, by another key of it."""
    start = key[: key.index("}:") + 2]
    return [f"{start}counters", f"{start}history"]


@cache
def text_of(step: str) -> str:
    """Return what a step sends: the shared definitions that it needs, each after what it needs itself.

    No others: Redis makes each function anew whenever the step runs.
    """
    names: list[str] = []
    _collect(step, names)
    text = _COMMENT.sub("", _read(names.pop()))
    for name in reversed(names):
        for part in reversed(_DEFINITION.split(_COMMENT.sub("", _read(name)))):
            if any(re.search(rf"\b{re.escape(word)}\b", text) for word in defined_in(part)):
                text = part + text
    return text


def defined_in(part: str) -> list[str]:
    """Return the names that a shared definition gives."""
    found = _DEFINED.match(part)
    return [] if found is None else (found["function"] or found["locals"]).split(", ")


@cache
def digest_of(step: str) -> str:
    """Return what a server that knows a step calls it."""
    return hashlib.sha1(text_of(step).encode(), usedforsecurity=False).hexdigest()


def _collect(name: str, found: list[str]) -> None:
    for line in _NEEDS.findall(_read(name)):
        for part in line.split(", "):
            if f"shared/{part}" not in found:
                _collect(f"shared/{part}", found)
    found.append(name)


@cache
def _read(name: str) -> str:
    return (_LUA / f"{name}.lua").read_text("utf-8")


def _packed(args: Iterable[Argument]) -> list[str | int | bytes]:
    packed: list[str | int | bytes] = []
    for arg in args:
        if isinstance(arg, _ONE):
            packed.append(arg)
        else:
            packed.append(len(arg))
            packed.extend(arg)
    return packed


def refuse(word: str, rest: Sequence[Any]) -> NoReturn:
    """Raise the error that a step's word stands for.

    :param rest: what the step answered after it.
    """
    match word:
        case "unknown":
            raise errors.TaskNotFound("there is no such task")
        case "expired":
            raise errors.TaskExpired("the task's time is over: add a new one")
        case "key_missing":
            raise key_missing(rest[0].decode(errors="replace"))
        case "blocked":
            raise errors.RecipientBlocked("too many wrong codes for this recipient: none is compared for now")
        case "not_holder":
            raise errors.NotHolder("the task is held by somebody: bring what add_task returned as `holder`")
        case "too_late":
            raise errors.TaskExpired("the task is about to end: another code could not be read in time")
        case "locked":
            raise errors.TaskLocked("too many wrong codes: the task is locked", attempts_left=0)
        case "finished":
            status = _status(rest[0])
            if status is Status.EXPIRED:
                refuse("expired", ())
            if status is Status.LOCKED:
                raise errors.TaskLocked("too many wrong codes: the task is locked")
            raise errors.TaskNotPending(f"the task is over: {status}", status=status)
        case "wrong":
            raise errors.WrongCode("this is not the code in force", **_left(rest))
        case "code_expired":
            raise errors.CodeExpired("the code is over: resend one", **_left(rest))
        case "not_allowed":
            left = int(rest[0]) if rest else None
            raise errors.MethodNotAllowed("the task does not allow this method", attempts_left=left)
        case "no_address":
            raise errors.MethodNotAllowed("the recipient has no address for this method")
        case "bad_time":
            raise errors.InvalidTask("send_at must not be over, nor more than 30 days ahead")
        case "too_soon":
            raise errors.ResendTooSoon("a code was sent just now, or waits", retry_after=int(rest[0]) / 1000)
        case "send_limit":
            message = "the task or its recipient had all the codes it may have for now"
            raise errors.SendLimitReached(message, retry_after=int(rest[0]) / 1000)
        case "resubscribe":
            raise errors.TaskTampered("the queue's callbacks change in Redis faster than they are read")
        case "no_strategy":
            method = rest[0].decode(errors="replace")
            raise errors.ConfigError(f"no strategy for {method}: register it as where the task was added")
    raise AssertionError(f"a step answered {word}")


def _left(rest: Sequence[Any]) -> dict[str, Any]:
    return {"attempts_left": int(rest[0]), "resend_after": int(rest[1]) / 1000}


def _status(stored: bytes) -> Status:
    try:
        return Status(stored.decode(errors="replace"))
    except ValueError:
        raise errors.TaskTampered("the task's status was changed in Redis from outside") from None
