"""What must hold, one session each: ``nox -l`` lists them, ``nox -s types`` runs one by itself.

What follows ``--`` goes to pytest: ``nox -s tests-3.12 -- -n0 tests/store``.
"""

import json
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
# A machine without one of the Pythons skips its session, and nox says so.
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["style", "types", "docs", "package", "tests"]

PACKAGE = "flask_taskflow"
DEBIAN = "redis-server"
PUBLIC = ["", ".errors", ".signals", ".strategies", ".testing"]


@nox.session
def style(session: nox.Session) -> None:
    """Check the rules of style, the format, and the spelling."""
    session.install("ruff>=0.17", "codespell>=2.4")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, the tests, the examples and this file, by mypy --strict."""
    session.install("-e", ".[dev]")
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages into docs/_build; a warning is an error."""
    session.install("-e", ".[docs]")
    session.run("python", "docs/draw.py", "--check")
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/_build")


@nox.session
def package(session: nox.Session) -> None:
    """Build source distribution and wheel, look into them, and use the wheel where it is installed."""
    session.install("build>=1.3")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder, silent=True)
        (source,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
        _check_contents(session, source, wheel)
        session.install(str(wheel), "pytest>=9")
        with session.chdir(folder):
            names = ", ".join(PACKAGE + module for module in PUBLIC)
            session.run("python", "-c", f"import {names}; print({PACKAGE}.__file__)")
            session.run("flask", "taskflow", "--help", silent=True)
            fixtures = str(session.run("pytest", "--fixtures", silent=True, success_codes=[0, 5]))
            if "taskflow_outbox" not in fixtures:
                session.error("pytest does not find the fixtures")


def _check_contents(session: nox.Session, source: Path, wheel: Path) -> None:
    """Compare a wheel and a source distribution with the tree."""
    files = (path for path in Path(PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    wanted = {"_flask_taskflow_pytest.py", *(str(path) for path in files)}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    if wanted != packed or not wanted <= sources:
        session.error(
            f"wheel: missing {sorted(wanted - packed)}, foreign {sorted(packed - wanted)}; "
            f"source distribution: missing {sorted(wanted - sources)}"
        )
    session.log(f"{len(packed)} files, {sum(name.endswith('.lua') for name in packed)} of them scripts")


def _install_tests(session: nox.Session, *options: str) -> None:
    """Install what the suite needs: the commands of the docs, which it runs, begin with pip."""
    session.install("pip", "-e", ".[test]", *options)


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Run the usual suite, on each Python that this machine has."""
    _install_tests(session)
    session.run("pytest", "-q", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the usual suite on the lowest versions that setup.cfg allows, and the machine's redis-server."""
    pins = str(session.run("python", ".ci/lowest", silent=True))
    session.log("with " + ", ".join(pins.split()))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pins)
        file.flush()
        _install_tests(session, "-c", file.name)
    if shutil.which(DEBIAN) is not None:
        session.env["TASKFLOW_TEST_SERVER"] = DEBIAN
    session.run("pytest", "-q", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known holes in the runtime's dependencies, the newest and the lowest that setup.cfg allows."""
    session.install("pip", "-e", ".[embedded,metrics,openapi,smart-otp,sms]")
    newest = str(session.run("pip", "freeze", "--exclude-editable", silent=True))
    lowest = str(session.run("python", ".ci/lowest", silent=True))
    session.install("pip-audit>=2.9")
    holes, unknown = [], 0
    for pins in (newest, lowest):
        for each in _audited(session, pins):
            unknown += "skip_reason" in each
            holes += [f"{each['name']} {each['version']}: {hole['id']}" for hole in each.get("vulns", ())]
    if holes:
        session.error(", ".join(holes))
    if unknown:
        session.skip(f"the database of advisories does not know {unknown} of the packages, or is not reached")


def _audited(session: nox.Session, pins: str) -> list[dict[str, Any]]:
    """Return what pip-audit tells of some pinned packages; skip the session if it cannot ask."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        wanted.write_text(pins)
        arguments = ["--no-deps", "--disable-pip", "-r", str(wanted), "-f", "json", "-o", str(report)]
        session.run("pip-audit", *arguments, success_codes=[0, 1], silent=True)
        if not report.exists():
            session.skip("the database of advisories is not reached")
        return list(json.loads(report.read_text())["dependencies"])


@nox.session
def redis(session: nox.Session) -> None:
    """Let processes and servers die on the machine's redis-server: what takes longer, without chaos."""
    if shutil.which(DEBIAN) is None:
        session.error("install redis-server: Debian's package has this name")
    session.run(DEBIAN, "--version", external=True)
    _install_tests(session)
    wings = [f"tests/{wing}" for wing in ("delivery", "models", "promises", "redis", "store")]
    arguments = session.posargs or ["-m", "slow and not chaos", *wings]
    session.run("pytest", "-q", *arguments, env={"TASKFLOW_TEST_SERVER": DEBIAN})


@nox.session(venv_backend="none")
def readme(session: nox.Session) -> None:
    """Run the READMEs' commands, each in a fresh copy of the tree, and the quickstart's demonstration."""
    session.run(".ci/readme", external=True)
