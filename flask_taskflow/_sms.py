"""Send codes by SMS, through whatever gateway Apprise knows."""

from __future__ import annotations

import logging
import re
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ._bounded import within
from ._config import Config
from ._providers import TO
from ._task import Method, Recipient, Status, Task
from ._texts import LANGUAGES, current_config, render_code
from .errors import ConfigError, InvalidTask
from .strategies import BaseStrategy

if TYPE_CHECKING:
    from apprise import NotifyBase

logger = logging.getLogger(__name__)

# 3GPP TS 23.038, 6.2.1: the default alphabet, and its extension, whose characters count twice.
_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§"
    "¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION = frozenset("\f^{}\\[~]|€")
#: What one message holds: septets of GSM-7, or else UTF-16 units.
GSM_MAX, UCS_MAX = 160, 70

# What the log of this send must not show, while there is one.
_hidden: ContextVar[tuple[str, ...]] = ContextVar("taskflow_hidden", default=())


class SMSStrategy(BaseStrategy):
    """Send codes by SMS. Needs the extra ``[sms]``.

    ``TASKFLOW_SMS_URL`` is an Apprise URL in which ``{to}`` stands for the number; an app overrides the
    template ``taskflow/sms/code.txt``. One send takes ``TASKFLOW_SEND_TIMEOUT`` at most. The log tells
    why one failed.

    :raises ConfigError: if the extra is not installed.
    """

    address = "phone_number"

    def __init__(self) -> None:
        if missing := [name for name in ("apprise", "phonenumbers") if find_spec(name) is None]:
            raise ConfigError(
                f"SMSStrategy needs {' and '.join(missing)}: run pip install 'flask-taskflow[sms]'"
            )
        _load_gateways()

    def normalise(self, address: str) -> str:
        """Return a telephone number in the form of E.164, as ``+84901234567``.

        :raises InvalidTask: if it is no number that exists, or has no country.
        """
        import phonenumbers

        region = current_config().phone_region
        try:
            number = phonenumbers.parse(address, region)
        except phonenumbers.NumberParseException:
            number = None
        if number is not None and phonenumbers.is_valid_number(number):
            return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
        cure = "" if region else ", or set TASKFLOW_PHONE_REGION"
        raise InvalidTask(f"recipient: phone_number is no number in use; begin with + and the country{cure}")

    def send(self, task: Task[Any], otp: str) -> None:
        """Send a code.

        :raises ConfigError: if a setting is missing or the text is too long.
        :raises InvalidTask: if the number is none.
        :raises OSError: if the gateway cannot be reached or does not take the message.
        """
        try:
            config = current_config()
            number = self.normalise(str(task.recipient.phone_number))
            text = compose(task, otp)
            gateway = _gateway(config, number)
            hidden = (str(otp), number[1:])
            within(config.send_timeout, lambda: _deliver(gateway, text, hidden))
        except Exception as error:
            told = isinstance(error, ConfigError | InvalidTask | TimeoutError | GatewayRefused)
            reason = str(error) if told else type(error).__name__
            logger.warning("The SMS for task %s was not sent: %s", task.id, reason)
            raise

    def rehearse(self, *, summary: str | None = None) -> None:
        """Try the settings and the texts, without sending. Call it in an app context, once, at start.

        :param summary: the longest one that tasks have.
        :raises ConfigError: if Apprise cannot read the URL, or a text is too long in a language.
        """
        config = current_config()
        _gateway(config, "+84901234567")
        for language in dict.fromkeys([*LANGUAGES, config.locale]):
            compose(_sample(summary), "0" * config.otp_length, locale=language)


class GatewayRefused(OSError):
    """The gateway did not take the message."""


def compose(task: Task[Any], otp: str, *, locale: str | None = None) -> str:
    """Return the text for a code, with WebOTP's last line if ``TASKFLOW_WEBOTP_HOST`` is set.

    :param locale: its language, default the current one.
    :raises ConfigError: if it takes more than one message.
    """
    text = render_code("sms/code.txt", task, otp, locale=locale)
    host = current_config().webotp_host
    if host is not None:
        # https://wicg.github.io/sms-one-time-codes: the last line, of nothing else.
        text = f"{text}\n\n@{host} #{otp}"
    if problem := too_long(text, secret=str(otp)):
        raise ConfigError(f"the text is too long for one SMS: {problem}")
    return text


def too_long(text: str, *, secret: str = "") -> str | None:
    """Return why a text takes more than one message, ``None`` if it does not.

    :param secret: a part whose characters are not to be named.
    """
    if foreign := "".join(dict.fromkeys(c for c in text if c not in _BASIC | _EXTENSION)):
        foreign = "".join(c for c in foreign if c not in secret)
        units = len(text.encode("utf-16-le")) // 2
        limit = f"{units} of {UCS_MAX} units of UCS-2, because GSM-7 has no {foreign[:5]!r}"
        return f"{limit} (without such characters {GSM_MAX} fit)" if units > UCS_MAX else None
    septets = len(text) + sum(c in _EXTENSION for c in text)
    return f"{septets} of {GSM_MAX} septets of GSM-7" if septets > GSM_MAX else None


def _gateway(config: Config, number: str) -> NotifyBase:
    import apprise

    if config.sms_url is None:
        raise ConfigError("set TASKFLOW_SMS_URL")
    # Apprise's complaints about a URL quote parts of it: all of them hold the empty text.
    token = _hidden.set(("",))
    try:
        gateway = apprise.Apprise.instantiate(config.sms_url.replace(TO, quote(number, safe="")))
    finally:
        _hidden.reset(token)
    if gateway is None:
        raise ConfigError("TASKFLOW_SMS_URL is not a URL that Apprise can read")
    for name in ("socket_connect_timeout", "socket_read_timeout"):
        setattr(gateway, name, min(getattr(gateway, name) or config.send_timeout, config.send_timeout))
    return gateway


def _deliver(gateway: NotifyBase, text: str, hidden: tuple[str, ...]) -> None:
    _hidden.set(hidden)
    if not gateway.notify(body=text):
        raise GatewayRefused("the gateway did not take it, or could not be reached")


def _sample(summary: str | None) -> Task[Any]:
    now = datetime.now(UTC)
    return Task(
        id="sample",
        queue="sample",
        data=None,
        summary=summary,
        recipient=Recipient(),
        allowed_methods=(Method.SMS,),
        status=Status.PENDING,
        priority=0,
        timeout=1.0,
        created_at=now,
        expires_at=now + timedelta(days=1),
    )


def _load_gateways() -> None:
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
