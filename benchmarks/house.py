"""The figures of the house: how large its rooms are and who leads to whom, now, before, and in its models.

Each column is a tree of the package: this one, the one of ``--was``, and those that are named. The models'
figures are as they were read when the plan was made; what was not read is left empty. STYLE's four small
models were measured together. Below the table stands what breaks a rule in the package as it is; then the
exit status is 1. Functions and classes are as long as from ``def`` or ``class`` to their end, docstrings
included; comments are lines of nothing else.

    python -m benchmarks.house --was f6c23e6
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks.shape import (
    CLASS_MAX,
    FUNCTION_MAX,
    PARAMETERS_MAX,
    RULES,
    Shape,
    Way,
    folder_circles,
    height,
    import_circles,
)
from benchmarks.trees import PACKAGE, add_was, tree_of

#: What the figures should be.
PLAN: dict[str, str] = {
    "longest function": f"<= {FUNCTION_MAX}",
    "largest class": f"< {CLASS_MAX + 1}",
    "widest signature": f"<= {PARAMETERS_MAX} *",
    "circles at import": "0",
    "  with imports in functions": "0",
    "  with imports for types": "0",
    "circles of folders": "0",
    "docstrings": "20-25 %",
    "comments": "about 3 %",
}
#: What is known of others.
MODELS: dict[str, dict[str, str]] = {
    "Flask-SQLAlchemy-Lite": {"modules": "4", "lines": "763"},
    "oban-py": {"longest module": "1103"},
    "four small models": {
        "function, median": "about 11",
        "function, 90%": "< 40",
        "longest function": "<= 60-75",
        "largest class": "<= 300",
        "docstrings": "20-30 %",
        "comments": "2-4 %",
    },
}
_NOTE = "* besides self; but for the public calls of the extension, which take options by name"


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__.split("\n")[0])
    parser.add_argument("trees", nargs="*", metavar="TREE", help=f"another folder that holds {PACKAGE}")
    add_was(parser)
    arguments = parser.parse_args()
    named = [(tree, tree) for tree in arguments.trees]
    columns: dict[str, dict[str, str]] = {}
    for title, was in [*named, *[("was", arguments.was)] * bool(arguments.was), ("is", None)]:
        with tree_of(was) as tree:
            shape = Shape(tree / PACKAGE)
        columns[title] = figures(shape)
    print(table({**columns, "plan": PLAN, **MODELS}))
    print(_NOTE)
    # The package as it is was measured last.
    broken = {rule: found for rule, check in RULES.items() if (found := check(shape))}
    for rule, found in broken.items():
        print(f"\nNOT KEPT: {rule}", *found, sep="\n  ")
    return 1 if broken else 0


def figures(shape: Shape) -> dict[str, str]:
    """Return what is measured of a tree, row by row."""
    functions = sorted(part.lines for part in shape.functions)
    lines, docstrings, comments = shape.line_counts()
    floors = height(shape.imports(Way.AT_IMPORT))
    return {
        "modules": f"{len(shape.modules)}",
        "folders": f"{len({module.folder for module in shape.modules.values()})}",
        "lines": f"{lines}",
        "longest module": f"{max(len(module.text.splitlines()) for module in shape.modules.values())}",
        "floors of imports": "endless" if floors is None else f"{floors}",
        "functions": f"{len(functions)}",
        "function, median": f"{statistics.median(functions):g}",
        "function, 90%": f"<= {functions[int(0.9 * len(functions))]}",
        "longest function": f"{functions[-1]}",
        "largest class": f"{max((part.lines for part in shape.classes), default=0)}",
        "widest signature": f"{max(part.parameters for part in shape.functions)}",
        "circles at import": f"{len(import_circles(shape, Way.AT_IMPORT))}",
        "  with imports in functions": f"{len(import_circles(shape, Way.IN_FUNCTIONS))}",
        "  with imports for types": f"{len(import_circles(shape, Way.FOR_TYPES))}",
        "circles of folders": f"{len(folder_circles(shape))}",
        "docstrings": f"{docstrings / lines:.1%}".replace("%", " %"),
        "comments": f"{comments / lines:.1%}".replace("%", " %"),
    }


def table(columns: dict[str, dict[str, str]]) -> str:
    """Return columns of figures as text, those that are not known empty.

    :param columns: title -> row -> figure; the first one has all rows.
    """
    rows = list(next(iter(columns.values())))
    first = max(map(len, rows))
    lines = [[" " * first, *columns]]
    lines += [[f"{row:{first}}", *(column.get(row, "") for column in columns.values())] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
