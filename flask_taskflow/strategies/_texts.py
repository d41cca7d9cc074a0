"""What people read: templates that an app may override, in the languages that are here."""

from __future__ import annotations

import gettext
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from flask import current_app, g, has_request_context
from jinja2 import (
    ChoiceLoader,
    Environment,
    PackageLoader,
    PrefixLoader,
    StrictUndefined,
    pass_context,
    select_autoescape,
)
from jinja2.runtime import Context
from markupsafe import escape

from .._config.config import current_config
from .._log import Logger
from .._otp import OTP
from .._tasks import Task

if TYPE_CHECKING:
    from flask import Flask

logger = Logger(__name__)

DOMAIN = "flask_taskflow"
#: The languages that texts are in; English is what the templates are written in.
LANGUAGES = ("en", "vi")


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
        found = get_locale()
    except Exception as error:
        # That there is no request is no news.
        told = current_app.extensions.setdefault("taskflow.selector", set())
        if type(error) not in told and (has_request_context() or not isinstance(error, RuntimeError)):
            told.add(type(error))
            kind = type(error).__name__
            logger.warning("The locale selector failed: %s. TASKFLOW_LOCALE counts then.", kind)
        return None
    return None if found is None else str(found)


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Let Flask-Babel's functions and filters write in a language, whoever asked for it, and where."""
    if "babel" not in current_app.extensions:
        yield
        return
    from flask_babel import force_locale, get_babel, get_timezone

    babel = get_babel().instance
    with force_locale(_nearest(language, babel.default_locale)):
        unset = None
        try:
            get_timezone()
        except Exception:
            # A selector that wants a request; and there is no force_timezone.
            unset = g._flask_babel
            unset.babel_tzinfo = babel.default_timezone
        try:
            yield
        finally:
            if unset is not None:
                unset.babel_tzinfo = None


def _nearest(language: str, default: Any) -> Any:
    """Return Babel's locale of this name, or of its language, or else the default one."""
    name = language.replace("-", "_")
    for known in (name, name.partition("_")[0]):
        # Babel's error for a locale that it does not know has no other ancestor.
        with suppress(Exception):
            return type(default).parse(known)
    return default


def render(name: str, task: Task[Any], otp: str, *, locale: str | None = None, own: bool = True) -> str:
    """Return a text for a code, without outer blanks.

    :param name: the template, below ``taskflow/``.
    :param task: what is confirmed.
    :param otp: the code.
    :param locale: the language, default the task's, else the current one.
    :param own: whether the app's template of this name counts.
    """
    language = locale or task.locale or current_locale()
    app = cast("Flask", cast(Any, current_app)._get_current_object())
    values: dict[str, Any] = {"task": task, "summary": task.summary, "otp": str(otp)}
    values |= {
        "minutes": minutes(task, otp),
        "locale": language.replace("_", "-"),
        "lang_of": lang_of,
        **translators(app, language),
    }
    template = _environment(app).get_template(f"taskflow/{name}" if own else f"{DOMAIN}/taskflow/{name}")
    with speaking(language):
        return template.render(values).strip()


def render_code(name: str, task: Task[Any], otp: str, *, locale: str | None = None, own: bool = True) -> str:
    """Return a text that has the code in it; the parameters are those of :func:`render`.

    :raises LookupError: if an app's template lost the code.
    """
    text = render(name, task, otp, locale=locale, own=own)
    if str(otp) in text:
        return text
    raise LookupError(f"the template taskflow/{name} does not show the code: it needs {{{{ otp }}}}")


def minutes(task: Task[Any], otp: str) -> int:
    """Return how many minutes a code is good for from now, the one that has begun included."""
    lasts = otp.lasts if isinstance(otp, OTP) else None
    if lasts is None:
        lasts = min(current_config().otp_ttl, (task.expires_at - task.created_at).total_seconds())
    return max(1, math.ceil(lasts / 60))


@lru_cache(maxsize=64)
def translations(locale: str) -> gettext.NullTranslations:
    """Return the catalogue for a locale as ``vi_VN``, or for its language; English if there is none."""
    language = locale.replace("-", "_").partition("_")[0].lower()
    if language not in LANGUAGES or language == "en":
        return gettext.NullTranslations()
    catalogue = files(__package__) / "translations" / language / "LC_MESSAGES" / f"{DOMAIN}.mo"
    with catalogue.open("rb") as file:
        return gettext.GNUTranslations(file)


def lang_of(text: str, language: str) -> str:
    """Return the language of a text, as HTML names it: English where no catalogue translates ours."""
    name = language.replace("_", "-")
    english = translations("vi").gettext(text) != text
    return "en" if english and name.partition("-")[0].lower() != "en" else name


def translators(app: Flask, language: str) -> dict[str, Callable[..., str]]:
    """Return the functions that translate: by the app's catalogue, and by ours what that leaves as it is."""
    ours = translations(language)
    new_style = getattr(app.jinja_env, "newstyle_gettext", False)

    def app_s(context: Context, name: str, texts: tuple[object, ...], values: dict[str, object]) -> Any:
        own: Any = app.jinja_env.globals.get(name)
        if own is None or not new_style:
            return own and _fill(context, cast(str, context.call(own, *texts)), values)
        return context.call(own, *texts, **values)

    @pass_context
    def translate(context: Context, text: str, **values: object) -> str:
        theirs, known = app_s(context, "gettext", (text,), values), ours.gettext(text)
        if theirs is not None and (known == text or str(theirs) != _filled(context, text, values)):
            return cast(str, theirs)
        return _fill(context, known, values)

    @pass_context
    def translate_number(context: Context, one: str, many: str, num: int, **values: object) -> str:
        values = {"num": num, **values}
        theirs, known = app_s(context, "ngettext", (one, many, num), values), ours.ngettext(one, many, num)
        same = [_filled(context, text, values) for text in (one, many)]
        if theirs is not None and (known in (one, many) or str(theirs) not in same):
            return cast(str, theirs)
        return _fill(context, known, values)

    return {"_": translate, "gettext": translate, "ngettext": translate_number}


def _fill(context: Context, text: str, values: dict[str, object]) -> str:
    """Fill a text in; where HTML is made, text and values are escaped once, and what is HTML not again."""
    return (escape(text) if context.eval_ctx.autoescape else text) % values


def _filled(context: Context, text: str, values: dict[str, object]) -> str:
    """Return a text as Jinja fills it in that has no translation."""
    as_html = context.environment.filters["safe"] if context.eval_ctx.autoescape else str
    return str(as_html(text) % values)


def _environment(app: Flask) -> Environment:
    """Return the environment of an app: its templates, then ours, with its filters, tests, globals and tags.

    It is not the app's own: settings of that, such as other delimiters, would break our templates.
    """
    known = app.extensions.get("taskflow.templates")
    if isinstance(known, Environment):
        return known
    package = PackageLoader(__package__ or "")
    own = app.create_global_jinja_loader()
    environment = Environment(
        loader=ChoiceLoader([own, package, PrefixLoader({DOMAIN: package})]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        auto_reload=app.debug,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[type(extension) for extension in app.jinja_env.extensions.values()],
    )
    # Of a {% trans %} block: its names are given to the functions above.
    setattr(environment, "newstyle_gettext", True)  # noqa: B010 - the extension of Jinja declares it
    environment.policies.update(app.jinja_env.policies)
    environment.filters.update(app.jinja_env.filters)
    environment.tests.update(app.jinja_env.tests)
    environment.globals.update(app.jinja_env.globals)
    app.extensions["taskflow.templates"] = environment
    return environment
