"""What `import penstock` costs: nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "click", "duckdb", "httptools", "numpy", "pandas", "polars", "prometheus_client", "pyarrow",
    "rich", "sqlglot", "uvloop",
}  # fmt: skip


def modules_after(statement: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules, sep='\\n')"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_importing_penstock_imports_nothing_heavy() -> None:
    assert "penstock" in modules_after("import penstock")
    assert modules_after("import penstock") & HEAVY == set()


def test_the_check_sees_a_heavy_import() -> None:
    assert "pyarrow" in modules_after("import pyarrow")


def test_every_public_name_can_be_had() -> None:
    import penstock

    for name in getattr(penstock, "__all__", ()):
        assert getattr(penstock, name) is not None
