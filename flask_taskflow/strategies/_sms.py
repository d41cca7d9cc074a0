"""Send codes by SMS, through whatever gateway Apprise knows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any

from .._config.config import Config, current_config
from .._log import Logger
from .._tasks import Method, Recipient, Status, Task
from ..errors import ConfigError, InvalidTask, Reject
from ._base import BaseStrategy
from ._gateway import deliver, find_gateway, load_gateways
from ._gsm import cut, fitted, length, too_long
from ._texts import LANGUAGES, render_code

logger = Logger(__name__)

_SOME_NUMBER = "+84901234567"


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
        load_gateways()

    def normalise(self, address: str) -> str:
        """Return a telephone number in the form of E.164, as ``+84901234567``.

        :raises InvalidTask: if it is no number that exists, has no country or one that
            ``TASKFLOW_PHONE_COUNTRIES`` lacks, or if its owner earns by each message.
        """
        import phonenumbers

        config = current_config()
        try:
            number = phonenumbers.parse(address, config.phone_region)
        except phonenumbers.NumberParseException:
            number = None
        if number is None or not phonenumbers.is_valid_number(number):
            cure = "" if config.phone_region else ", or set TASKFLOW_PHONE_REGION"
            raise InvalidTask(
                f"recipient: phone_number is no number in use; begin with + and the country{cure}"
            )
        kind = phonenumbers.number_type(number)
        if kind in (phonenumbers.PhoneNumberType.PREMIUM_RATE, phonenumbers.PhoneNumberType.SHARED_COST):
            raise InvalidTask(
                "recipient: phone_number is a premium-rate number, whose owner earns by messages"
            )
        countries = config.phone_countries
        if countries is not None and phonenumbers.region_code_for_number(number) not in countries:
            raise InvalidTask("recipient: phone_number is of a country that TASKFLOW_PHONE_COUNTRIES lacks")
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)

    def check_settings(self) -> None:
        """Refuse an app without a gateway, or with settings by which no message could be sent.

        :raises ConfigError: if it is missing, Apprise cannot read its URL, or a country does not exist.
        """
        config = current_config()
        if config.sms_url is None:
            raise ConfigError(
                "set TASKFLOW_SMS_URL: SMSStrategy needs it, unless the app is TESTING before init_app()"
            )
        _check_countries(config)
        find_gateway(config, _SOME_NUMBER)

    def send(self, task: Task[Any], otp: str) -> str | None:
        """Send a code. A summary that leaves no room for it is shortened or left out.

        It returns no name of the message: Apprise does not tell what a gateway calls it.

        :raises ConfigError: if a setting is missing.
        :raises Reject: if the number is none, or the gateway refused the message for good.
        :raises Retry: if the gateway cannot be reached, or did not take the message now.
        :raises OutcomeUnknown: if the gateway may have taken it, and did not answer.
        """
        config = current_config()
        number = self._number(task)
        gateway = find_gateway(config, number)
        text = compose(task, otp)
        deliver(gateway, text, hidden=(str(otp), number[1:]), timeout=config.send_timeout)
        return None

    def _number(self, task: Task[Any]) -> str:
        try:
            return self.normalise(str(task.recipient.phone_number))
        except InvalidTask as error:
            raise Reject(str(error)) from None

    def rehearse(self, *, summary: str | None = None) -> None:
        """Try the settings and the texts, without sending. Call it in an app context, once, at start.

        :param summary: the longest one that tasks have.
        :raises ConfigError: if Apprise cannot read the URL, a country does not exist, or a text is too long
            in a language.
        """
        config = current_config()
        _check_countries(config)
        find_gateway(config, _SOME_NUMBER)
        for language in dict.fromkeys([*LANGUAGES, config.locale]):
            code = "0" * config.otp_length
            text = _write(_sample(summary), code, language)
            if fitted(text, code) is None:
                raise ConfigError(_reason(text))


def compose(task: Task[Any], otp: str) -> str:
    """Return the text for a code, with WebOTP's last line if ``TASKFLOW_WEBOTP_HOST`` is set.

    A code matters more than its wording. So what does not fit in one message is written in GSM-7, and if that
    is not enough, the summary is shortened or left out, and an app's template gives way to this package's.

    :raises ConfigError: if even that takes more than one message.
    """
    code = str(otp)
    text = _write(task, otp)
    found = fitted(text, code)
    if found is not None:
        return found
    how, found = _with_less(lambda summary: fitted(_write(replace(task, summary=summary), otp), code), task)
    if found is None:
        how = "is in the words of this package, because taskflow/sms/code.txt of the app is too long"
        found = fitted(_write(replace(task, summary=None), otp, own=False), code)
    if found is None:
        raise ConfigError(_reason(_write(replace(task, summary=None), otp, own=False), secret=code))
    logger.warning("The SMS for task %s %s: it took %d of %d %s", task.id, how, *length(text))
    return found


def _with_less(write: Callable[[str], str | None], task: Task[Any]) -> tuple[str, str | None]:
    """Return what was done to a summary, and the text with as much of it as fits."""
    summary = task.summary or ""
    sizes = range(len(summary))
    most = bisect_left(sizes, True, key=lambda size: write(cut(summary, size)) is None) - 1
    short = cut(summary, most) if most > 0 else ""
    return "has a shortened summary" if short else "leaves its summary out", write(short)


def _write(task: Task[Any], otp: str, locale: str | None = None, *, own: bool = True) -> str:
    text = render_code("sms/code.txt", task, otp, locale=locale, own=own)
    host = current_config().webotp_host
    # https://wicg.github.io/sms-one-time-codes: the last line, of nothing else.
    return text if host is None else f"{text}\n\n@{host} #{otp}"


def _reason(text: str, *, secret: str = "") -> str:
    return f"the text is too long for one SMS: {too_long(text, secret=secret)}"


def _check_countries(config: Config) -> None:
    import phonenumbers

    known = phonenumbers.SUPPORTED_REGIONS
    if config.phone_region is not None and config.phone_region not in known:
        raise ConfigError(f"TASKFLOW_PHONE_REGION: {config.phone_region} has no telephone numbers")
    if unknown := [name for name in config.phone_countries or () if name not in known]:
        raise ConfigError(f"TASKFLOW_PHONE_COUNTRIES: {unknown[0]} has no telephone numbers")


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
