"""What people read: templates that an app may override, in the languages that are here."""

from __future__ import annotations

import gettext
import math
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from flask import current_app, has_request_context
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

from ._config import Config
from ._task import Task

if TYPE_CHECKING:
    from flask import Flask

DOMAIN = "flask_taskflow"
#: The languages that texts are in; English is what the templates are written in.
LANGUAGES = ("en", "vi")


def current_config() -> Config:
    """Return the configuration of the current app's extension."""
    config: Config = current_app.extensions["taskflow"]._service().config
    return config


def requested_locale() -> str | None:
    """Return the language of the current request, by Flask-Babel, or ``None`` if nothing tells it."""
    return _babel_locale() if has_request_context() else None


def current_locale() -> str:
    """Return the language to write in: Flask-Babel's, where the app has it, else the configured one.

    Outside a request a locale selector often cannot tell: then the configured one counts, too.
    """
    return _babel_locale() or current_config().locale


def _babel_locale() -> str | None:
    if "babel" not in current_app.extensions:
        return None
    from flask_babel import get_locale

    try:
        return str(get_locale())
    except RuntimeError:
        return None


def render(name: str, task: Task[Any], otp: str, *, locale: str | None = None) -> str:
    """Return a text for a code, without outer blanks.

    :param name: the template, below ``taskflow/``.
    :param task: what is confirmed.
    :param otp: the code.
    :param locale: the language, default the task's, else the current one.
    """
    language = locale or task.locale or current_locale()
    values: dict[str, Any] = {"task": task, "summary": task.summary, "otp": str(otp)}
    values |= {"minutes": minutes(task), "locale": language.replace("_", "-"), **_functions(language)}
    app = cast("Flask", cast(Any, current_app)._get_current_object())
    return _environment(app).get_template(f"taskflow/{name}").render(values).strip()


def render_code(name: str, task: Task[Any], otp: str, *, locale: str | None = None) -> str:
    """Return a text that has the code in it; the parameters are those of :func:`render`.

    :raises LookupError: if an app's template lost the code.
    """
    text = render(name, task, otp, locale=locale)
    if str(otp) in text:
        return text
    raise LookupError(f"the template taskflow/{name} does not show the code: it needs {{{{ otp }}}}")


def minutes(task: Task[Any]) -> int:
    """Return how long a code of a task lives at most, in minutes; a resent code has less left."""
    life = min(current_config().otp_ttl, (task.expires_at - task.created_at).total_seconds())
    return max(1, math.ceil(life / 60))


@lru_cache(maxsize=64)
def translations(locale: str) -> gettext.NullTranslations:
    """Return the catalogue for a locale as ``vi_VN``, or for its language; English if there is none."""
    language = locale.replace("-", "_").partition("_")[0].lower()
    if language not in LANGUAGES or language == "en":
        return gettext.NullTranslations()
    catalogue = files(__package__) / "translations" / language / "LC_MESSAGES" / f"{DOMAIN}.mo"
    with catalogue.open("rb") as file:
        return gettext.GNUTranslations(file)


def _functions(locale: str) -> dict[str, Callable[..., str]]:
    known = translations(locale)

    def translate(text: str, **values: object) -> str:
        return known.gettext(text) % values

    def translate_number(one: str, many: str, num: int, **values: object) -> str:
        return known.ngettext(one, many, num) % {"num": num, **values}

    return {"_": translate, "gettext": translate, "ngettext": translate_number}


def _environment(app: Flask) -> Environment:
    """Return the environment of an app: its templates, then ours, with its filters, tests and globals.

    It is not the app's own: settings of that, such as other delimiters, would break our templates.
    """
    known = app.extensions.get("taskflow.templates")
    if isinstance(known, Environment):
        return known
    environment = Environment(
        loader=ChoiceLoader([app.create_global_jinja_loader(), PackageLoader(__package__ or "")]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        auto_reload=app.debug,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(app.jinja_env.filters)
    environment.tests.update(app.jinja_env.tests)
    environment.globals.update(app.jinja_env.globals)
    app.extensions["taskflow.templates"] = environment
    return environment
