"""The map of who may import whom, as ARCHITECTURE draws it; a wrong arrow fails.

    cli, serve, testing, demo → runtime → decide → process → nouns

A stage imports those to its right, and never its neighbours: imports inside functions and for type
checking count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "penstock"

LAYERS: list[set[str]] = [
    {"event", "schema", "clock", "errors", "settings", "toml", "wording", "_native"},
    {"process"},
    {"decide"},
    {"runtime"},
    {"cli", "serve", "testing", "demo"},
]
LEVEL = {stage: level for level, stages in enumerate(LAYERS) for stage in stages}
NOUNS = LAYERS[0]

# Arrows that the map does not allow, each with its reason.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("cli", "serve"): "the command line starts the doors",
    ("cli", "demo"): "the command line starts the demonstration",
    ("__main__", "cli"): "`python -m penstock` is the command line",
}


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    file: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.importer} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def stage(module: str) -> str:
    """The second word of `penstock.log.embedded`; empty for the package itself."""
    return [*module.split("."), ""][1]


def modules() -> dict[str, Path]:
    # An example that is linked here is a user's file, and imports what users do.
    files = (path for path in sorted(SOURCE.rglob("*.py")) if not path.is_symlink())
    return {module_name(path): path for path in files}


def imported_modules(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        assert node.module is not None
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            native = submodule == "penstock._native"
            yield submodule if native or submodule in modules() else node.module


def imports(module: str) -> list[Import]:
    path = modules()[module]
    tree = ast.parse(path.read_text())
    eager = {id(node) for node in tree.body}
    return [
        Import(module, imported, str(path.relative_to(SOURCE.parent)), line, lazy)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line, lazy in [(node.lineno, id(node) not in eager)]
        for imported in imported_modules(node)
        if imported.split(".")[0] == "penstock"
    ]


def allowed(found: Import) -> bool:
    importer, imported = stage(found.importer), stage(found.imported)
    if importer == "":  # the package's own `__init__` shows everything
        return True
    if imported == "" or imported not in LEVEL:
        return False
    same = importer == imported or {importer, imported} <= NOUNS
    return same or (importer, imported) in EXCEPTIONS or LEVEL[importer] > LEVEL[imported]


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_module_stands_in_one_layer(module: str) -> None:
    assert stage(module) in LEVEL or stage(module) in ("", "__main__"), f"{module} is in no layer"


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_import_points_towards_the_nouns(module: str) -> None:
    wrong = [str(found) for found in imports(module) if not allowed(found)]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_needed() -> None:
    pairs = {(stage(found.importer), stage(found.imported)) for module in modules() for found in imports(module)}
    assert set(EXCEPTIONS) <= pairs


def test_the_map_is_drawn_as_it_is_and_shows_nothing_that_is_not() -> None:
    shown = {stage(module) for module in modules()} | {"_native"}
    assert set(LEVEL) <= shown
    drawn = (SOURCE.parents[1] / "ARCHITECTURE.md").read_text()
    arrows = next(line for line in drawn.splitlines() if line.strip().startswith("cli, "))
    stages = [set(words.strip().split(", ")) for words in arrows.split("→")]
    assert stages[:-1] == LAYERS[:0:-1] and stages[-1] == {"nouns"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    eager = {module: {found.imported for found in imports(module) if not found.lazy} for module in modules()}

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        for imported in sorted(eager.get(module, ())):
            follow(imported, (*path, module))

    for module in eager:
        follow(module, ())


def test_the_map_itself_catches_a_wrong_arrow() -> None:
    def found(importer: str, imported: str) -> Import:
        return Import(f"penstock.{importer}", imported, "x.py", 1, False)

    assert allowed(found("runtime.gate", "penstock.decide"))
    assert allowed(found("process.streams", "penstock.schema"))
    assert not allowed(found("process.streams", "penstock.runtime.gate"))
    assert not allowed(found("process.streams", "penstock.decide.rules"))
    assert not allowed(found("testing", "penstock.serve.door"))
    assert not allowed(found("runtime.gate", "penstock.serve.door"))
    assert not allowed(found("runtime.gate", "penstock"))
