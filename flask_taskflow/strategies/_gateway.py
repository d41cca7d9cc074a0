"""An SMS gateway behind Apprise: how it is found, what it may log, and what became of a message."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .._config.config import Config
from .._config.providers import TO
from .._log import Logger
from ..errors import ConfigError, OutcomeUnknown, Reject, Retry
from ._deadline import within

if TYPE_CHECKING:
    from apprise import NotifyBase

logger = Logger(__name__)

# What the log of this send must not show, while there is one.
_hidden: ContextVar[tuple[str, ...]] = ContextVar("taskflow_hidden", default=())

# What requests, which Apprise sends by, and the standard library raise when an answer does not come. Without
# a connection they raise these, too.
_NO_ANSWER = {
    "ConnectionError", "Timeout", "TimeoutError", "ChunkedEncodingError", "ContentDecodingError",
    "InvalidHeader", "SMTPServerDisconnected",
}  # fmt: skip
# Apprise's warnings end with the status of the answer, or with Twilio's own number for it.
_STATUS = re.compile(r"error=([1-5]\d\d|21\d{3})\b")
# Not about the message but about the account or the moment (RFC 9110, 15.5; RFC 6585, 4; RFC 8470, 5.2).
_FOR_NOW = {401, 402, 403, 407, 408, 409, 423, 425, 429}


def load_gateways() -> None:
    """Import Apprise's gateways, which takes a third of a second: the first send shall not pay for it."""
    with warnings.catch_warnings():
        # Some gateways use what Python is about to drop.
        warnings.simplefilter("ignore")
        import apprise

        apprise.Apprise.instantiate("json://localhost")
    for name in ("apprise", "urllib3.connectionpool"):
        log = logging.getLogger(name)
        if not any(isinstance(known, _Discreet) for known in log.filters):
            log.addFilter(_Discreet())


def find_gateway(config: Config, number: str) -> NotifyBase:
    """Return what sends to a number.

    :raises ConfigError: if ``TASKFLOW_SMS_URL`` is not set, or Apprise cannot read it.
    """
    import apprise

    if config.sms_url is None:
        raise ConfigError("set TASKFLOW_SMS_URL")
    # Apprise's complaints about a URL quote parts of it: all of them hold the empty text.
    token = _hidden.set(("",))
    # A redirect would be asked for without the message, and called a success; or a stranger would get that.
    asset = apprise.AppriseAsset()
    asset.http_redirects = False
    try:
        gateway = apprise.Apprise.instantiate(config.sms_url.replace(TO, quote(number, safe="")), asset=asset)
    finally:
        _hidden.reset(token)
    if gateway is None:
        raise ConfigError("TASKFLOW_SMS_URL is not a URL that Apprise can read")
    # Half of the time is for connecting at most: what did not connect then can be sent again. An answer may
    # take all of it, unless the URL says otherwise: the code may have arrived before it.
    for name, most in (("socket_connect_timeout", config.send_timeout / 2), ("socket_read_timeout", None)):
        given, usual = getattr(gateway, name), getattr(type(gateway), name)
        patience = given if given and (most or given != usual) else config.send_timeout
        setattr(gateway, name, min(patience, most or config.send_timeout))
    return gateway


def deliver(gateway: NotifyBase, text: str, *, hidden: tuple[str, ...], timeout: float) -> None:
    """Hand a message to a gateway, once: retries of Apprise's own are not of ``notify``.

    :param hidden: what the log must not show.
    :param timeout: seconds for all of it.
    :raises Reject: if the gateway refused the message for good.
    :raises Retry: if it refused it for now, or nothing of the message was sent.
    :raises OutcomeUnknown: if it may have taken the message, and no answer tells.
    """
    heard = _Heard(logging.getLogger("apprise"), {})
    # Plugins log by their instance's attribute.
    setattr(gateway, "logger", heard)  # noqa: B010 - it is declared to be a Logger

    def work() -> None:
        _hidden.set(hidden)
        heard.thread = threading.get_ident()
        if not gateway.notify(body=text):
            raise heard.outcome or Retry("the gateway did not take it")

    try:
        within(timeout, work, cut=heard.look)
    except TimeoutError as error:
        if heard.connecting:
            raise Retry(f"the gateway could not be reached: {error}") from None
        raise OutcomeUnknown(f"the gateway did not answer: {error}") from None


class _Heard(logging.LoggerAdapter[logging.Logger]):
    """Hear why a plugin of Apprise failed: its ``notify`` only says that it did.

    Each logs from within the ``except`` clause of its request, and the status of an answer that it does not
    like. Only a verdict is kept: errors hold frames, and frames the message.
    """

    thread = 0
    connecting = False
    outcome: Exception | None = None

    def log(self, level: int, msg: object, *args: Any, **options: Any) -> None:
        """Hear a record, whether or not it is to be logged."""
        error = sys.exception()
        if isinstance(error, OSError):
            self.outcome = _failed(error)
        else:
            # A record that cannot be formatted is for logging to complain about.
            with suppress(TypeError, ValueError, KeyError):
                found = _STATUS.search(str(msg) % args if args else str(msg))
                self.outcome = _answered(int(found[1])) if found else self.outcome
        try:
            super().log(level, msg, *args, **{"stacklevel": 2, **options})
        except Exception as error:
            # An app's filters may raise. They may have come before ours: nothing of the record is shown.
            logger.warning("What Apprise logs was not logged: %s.", type(error).__name__)

    def __getattr__(self, name: str) -> Any:
        # Apprise gives loggers methods of its own.
        return getattr(self.logger, name)

    def look(self) -> None:
        """See whether the thread that sends is still about to connect: then nothing was sent."""
        frame = sys._current_frames().get(self.thread)
        self.connecting = frame is not None and _connects(here for here, _ in traceback.walk_stack(frame))


def _failed(error: OSError) -> Exception:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "ConnectionRefusedError" in names or not names & _NO_ANSWER or _connects(_frames(error)):
        return Retry("the gateway could not be reached")
    return OutcomeUnknown("the gateway did not answer")


def _frames(error: BaseException | None) -> Iterator[FrameType]:
    while error is not None:
        yield from (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        error = error.__cause__ or error.__context__


def _connects(frames: Iterable[FrameType]) -> bool:
    """Tell whether a name is looked up in these frames, or a connection made, TLS included."""
    places = ((frame.f_globals.get("__name__"), frame.f_code.co_name) for frame in frames)
    return ("urllib3.connection", "connect") in places


def _answered(status: int) -> Exception:
    if status == 504:
        # It stands in front of one that did not answer it (RFC 9110, 15.6.5).
        return OutcomeUnknown("what stands behind the gateway did not answer (504)")
    if status == 303:
        # The answer to what was done is elsewhere (RFC 9110, 15.4.4); other redirects say that nothing was.
        return OutcomeUnknown("the gateway told nothing of it (303)")
    if status < 400 or status in _FOR_NOW or 500 <= status < 600:
        return Retry(f"the gateway did not take it ({status})")
    return Reject(f"the gateway refused it ({status})")


class _Discreet(logging.Filter):
    """Keep codes out of the logs of Apprise and of what it calls; other uses of them log as before."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record may be logged: not below warnings, which show whole messages."""
        hidden = _hidden.get()
        if not hidden:
            return True
        message = record.getMessage()
        digits = re.sub("[^0-9]", "", message)
        shown = any(secret in message or secret in digits for secret in hidden)
        return record.levelno >= logging.WARNING and not record.exc_info and not shown
