"""The shape of a package tree: who imports whom, in which way, and how long its parts are.

It only reads the sources, all sub-packages included, so that any tree can be measured: an older revision, or
one that was made to break a rule. Modules go by their dotted names inside the package; the package itself,
that is its ``__init__``, goes by the empty name.
"""

from __future__ import annotations

import ast
import enum
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: The figures of the plan: lines of a function, lines of a class, parameters besides ``self``.
FUNCTION_MAX = 50
CLASS_MAX = 299
PARAMETERS_MAX = 7
#: What apps call with many options by name; nothing else may take more than PARAMETERS_MAX.
PUBLIC_CALLS = {
    "Calls.add_task",
    "Decorators.on_schedule",
    "TaskFlow.create_blueprint",
    "TaskFlow.on_task_verified",
}
#: What setup.cfg requires; Werkzeug, Click and Jinja are what Flask itself is made of, the last one is ours.
RUNTIME = {
    *("flask", "redis", "hiredis", "marshmallow", "blinker", "werkzeug", "click", "jinja2", "markupsafe"),
    "_flask_taskflow_pytest",
}
#: What setup.cfg names in extras and the package imports.
EXTRAS = {
    "apispec",
    "apprise",
    "cronsim",
    "flask_babel",
    "phonenumbers",
    "prometheus_client",
    "pyotp",
    "rfc8785",
    "segno",
}

Graph = Mapping[str, set[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Way(enum.IntEnum):
    """The ways to count imports; each one counts those of the ways before it, too."""

    AT_IMPORT = 1
    IN_FUNCTIONS = 2
    FOR_TYPES = 3


@dataclass(frozen=True)
class Module:
    """A module of the package.

    :param name: its dotted name inside the package.
    :param folder: the dotted name of the package that its relative imports start from.
    :param text: its source.
    :param tree: the same, parsed.
    """

    name: str
    folder: str
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class Part:
    """A function or a class; nested ones are parts of their own.

    :param name: its name inside the package, as ``_store.tasks.TaskStore.add``.
    :param is_class: whether it is a class.
    :param lines: from ``def`` or ``class`` to the end.
    :param parameters: those of a function, besides ``self`` and ``cls``.
    """

    name: str
    is_class: bool
    lines: int
    parameters: int


class Shape:
    """Measure a package tree.

    :param package: the folder of the package.
    """

    def __init__(self, package: Path) -> None:
        self.name = package.name
        found = [_read(package, path) for path in sorted(package.rglob("*.py"))]
        self.modules = {module.name: module for module in found}
        if "" not in self.modules:
            raise ValueError(f"{package} is no package: it has no __init__.py")
        parts = [part for module in found for part in _parts(module.tree, module.name)]
        self.functions = [part for part in parts if not part.is_class]
        self.classes = [part for part in parts if part.is_class]

    def called(self, name: str) -> str:
        """Return how a module is called in what is reported."""
        return name or f"{self.name} itself"

    def imports(self, way: Way) -> Graph:
        """Return which modules of the package each module imports."""
        return {
            name: {
                target
                for node, met in _imports(module.tree, Way.AT_IMPORT)
                if met <= way
                for target in self._own(module, node)
            }
            for name, module in self.modules.items()
        }

    def foreign(self, way: Way) -> dict[str, set[str]]:
        """Return which packages besides the standard library and this one each module imports."""
        return {
            name: {
                top
                for node, met in _imports(module.tree, Way.AT_IMPORT)
                if met <= way
                for top in _tops(node)
                if top not in sys.stdlib_module_names and top != self.name
            }
            for name, module in self.modules.items()
        }

    def _own(self, module: Module, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        """Yield the modules that an import runs, the packages that hold them included.

        A package that holds the importing module, too, runs already: it counts only where a name of its own
        is imported.
        """
        for base, names in self._bases(module, node):
            for name in names or [""]:
                target = _join(base, name)
                target = target if target in self.modules else base
                if target in self.modules and target != module.name:
                    yield target
                    around = {module.folder, *_folders(module.folder)}
                    yield from (each for each in _folders(target) if each not in around)

    def _bases(self, module: Module, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, list[str]]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == self.name:
                    yield rest, []
            return
        names = [alias.name for alias in node.names]
        if node.level:
            parts = module.folder.split(".") if module.folder else []
            above = ".".join(parts[: len(parts) - node.level + 1])
            yield _join(above, node.module or ""), names
        else:
            top, _, rest = (node.module or "").partition(".")
            if top == self.name:
                yield rest, names

    def line_counts(self) -> tuple[int, int, int]:
        """Return the number of lines, of those in docstrings, and of those that are comments alone."""
        texts = [module.text for module in self.modules.values()]
        docstrings = sum(_docstring_lines(module.tree) for module in self.modules.values())
        return sum(len(text.splitlines()) for text in texts), docstrings, sum(map(_comment_lines, texts))


def import_circles(shape: Shape, way: Way) -> list[str]:
    """Return the circles of modules, counted one way."""
    return [" <-> ".join(circle) for circle in _circles(shape.imports(way))]


def folder_circles(shape: Shape) -> list[str]:
    """Return the circles of folders: in each package, of the modules and the packages that it holds."""
    graph = shape.imports(Way.FOR_TYPES)
    found = []
    for folder in sorted({module.folder for module in shape.modules.values()}):
        rooms: defaultdict[str, set[str]] = defaultdict(set)
        for name, targets in graph.items():
            room = _room(name, folder)
            if room is not None:
                rooms[room] |= {other for other in (_room(each, folder) for each in targets) if other}
                rooms[room].discard(room)
        found += [" <-> ".join(circle) for circle in _circles(rooms)]
    return found


def arrows_up(shape: Shape, floors: Sequence[Iterable[str]]) -> list[str]:
    """Return the imports that lead up, however they are written, and what stands on no floor.

    :param floors: names of top-level modules and packages, the highest floor first.
    """
    height = {room: -index for index, floor in enumerate(floors) for room in floor} | {"": 1}
    graph = shape.imports(Way.FOR_TYPES)
    lost = sorted({room for room in (_room(name, "") for name in graph) if room and room not in height})
    up = [
        f"{name} -> {shape.called(target)}"
        for name, targets in sorted(graph.items())
        for target in sorted(targets)
        if name and height.get(_top(name), 1) < height.get(_top(target), -len(height))
    ]
    return [f"{room} stands on no floor" for room in lost] + up


def long_functions(shape: Shape) -> list[str]:
    """Return the functions of more than FUNCTION_MAX lines."""
    return [f"{part.name}: {part.lines} lines" for part in shape.functions if part.lines > FUNCTION_MAX]


def long_classes(shape: Shape) -> list[str]:
    """Return the classes of more than CLASS_MAX lines."""
    return [f"{part.name}: {part.lines} lines" for part in shape.classes if part.lines > CLASS_MAX]


def wide_signatures(shape: Shape) -> list[str]:
    """Return the functions of more than PARAMETERS_MAX parameters, but for PUBLIC_CALLS."""
    return [
        f"{part.name}: {part.parameters} parameters"
        for part in shape.functions
        if part.parameters > PARAMETERS_MAX and ".".join(part.name.split(".")[-2:]) not in PUBLIC_CALLS
    ]


def foreign_at_import(shape: Shape) -> list[str]:
    """Return the imports of what an installation without extras may lack, made as soon as it is imported."""
    early = shape.foreign(Way.AT_IMPORT)
    return [f"{shape.called(name)}: {top}" for name in early for top in sorted(early[name] - RUNTIME)]


def foreign_anywhere(shape: Shape) -> list[str]:
    """Return the imports, in functions and for types, too, of what setup.cfg does not name."""
    late, known = shape.foreign(Way.FOR_TYPES), RUNTIME | EXTRAS
    return [f"{shape.called(name)}: {top}" for name in late for top in sorted(late[name] - known)]


def extras_of_many(shape: Shape) -> list[str]:
    """Return the extras that more than one module imports: each has one owner."""
    late = shape.foreign(Way.FOR_TYPES)
    owners = {extra: [name for name, tops in late.items() if extra in tops] for extra in sorted(EXTRAS)}
    return [f"{extra}: {', '.join(names)}" for extra, names in owners.items() if len(names) > 1]


#: What must hold of every tree, by what it is called; each answers what breaks it.
RULES: dict[str, Callable[[Shape], list[str]]] = {
    "no circle at import": lambda shape: import_circles(shape, Way.AT_IMPORT),
    "no circle with imports in functions": lambda shape: import_circles(shape, Way.IN_FUNCTIONS),
    "no circle with imports for types": lambda shape: import_circles(shape, Way.FOR_TYPES),
    "no circle of folders": folder_circles,
    f"functions of at most {FUNCTION_MAX} lines": long_functions,
    f"classes under {CLASS_MAX + 1} lines": long_classes,
    f"signatures of at most {PARAMETERS_MAX} parameters": wide_signatures,
    "only required packages at import": foreign_at_import,
    "only packages that setup.cfg names": foreign_anywhere,
    "one owner an extra": extras_of_many,
}


def height(graph: Graph) -> int | None:
    """Return how many modules the longest chain of imports has, or ``None`` if there is a circle."""
    if _circles(graph):
        return None
    heights: dict[str, int] = {}

    def above(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max(map(above, graph[name]), default=0)
        return heights[name]

    return max(map(above, graph))


def _read(package: Path, path: Path) -> Module:
    folder = ".".join(path.relative_to(package).parent.parts)
    name = folder if path.stem == "__init__" else _join(folder, path.stem)
    text = path.read_text("utf-8")
    return Module(name, folder, text, ast.parse(text))


def _join(folder: str, name: str) -> str:
    return f"{folder}.{name}".strip(".")


def _folders(name: str) -> list[str]:
    """Return the packages around a module, the whole package last."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _top(name: str) -> str:
    return name.split(".")[0]


def _room(name: str, folder: str) -> str | None:
    """Return what directly in a folder holds a module or is it; ``None`` for one elsewhere."""
    inside = not folder or name.startswith(f"{folder}.")
    if not name or not inside:
        return None
    return _join(folder, _top(name[len(folder) :].lstrip(".")))


def _imports(node: ast.AST, way: Way) -> Iterator[tuple[ast.Import | ast.ImportFrom, Way]]:
    """Yield the imports below a node, with the first way that counts them."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, way
    elif isinstance(node, ast.Call) and (made := _imported_by_call(node)) is not None:
        yield made, way
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for statement in node.body:
            yield from _imports(statement, Way.FOR_TYPES)
        for statement in node.orelse:
            yield from _imports(statement, way)
    else:
        inner = max(way, Way.IN_FUNCTIONS) if isinstance(node, Function | ast.Lambda) else way
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, inner)


def _imported_by_call(node: ast.Call) -> ast.ImportFrom | None:
    """Return ``import_module("...")`` and ``__import__("...")`` as the statement that does the same."""
    called = ast.unparse(node.func).split(".")[-1]
    first = node.args[0] if node.args else None
    if called not in ("import_module", "__import__") or not isinstance(first, ast.Constant):
        return None
    module = str(first.value)
    return ast.ImportFrom(module.lstrip("."), [], len(module) - len(module.lstrip(".")))


def _tops(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {_top(alias.name) for alias in node.names}
    return set() if node.level else {_top(node.module or "")}


def _parts(node: ast.AST, around: str) -> Iterator[Part]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef):
            yield from _parts(child, around)
            continue
        name, is_class = _join(around, child.name), isinstance(child, ast.ClassDef)
        lines = (child.end_lineno or 0) - child.lineno + 1
        parameters = (
            0 if isinstance(child, ast.ClassDef) else _parameters(child, isinstance(node, ast.ClassDef))
        )
        yield Part(name, is_class, lines, parameters)
        yield from _parts(child, name)


def _parameters(node: Function, in_class: bool) -> int:
    given = node.args
    listed = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    static = any(ast.unparse(each) == "staticmethod" for each in node.decorator_list)
    return sum(each is not None for each in listed) - (in_class and not static)


def _docstring_lines(tree: ast.Module) -> int:
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            text = node.body[0]
            count += (text.end_lineno or 0) - text.lineno + 1
    return count


def _comment_lines(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT and token.line.lstrip().startswith("#") for token in tokens)


def _circles(graph: Graph) -> list[list[str]]:
    """Return the groups of names that reach one another, each sorted."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in graph
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph.get(name, ())
    return found
