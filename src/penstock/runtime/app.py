"""Load the pipeline that a user's file defines."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from penstock.errors import DefinitionError, PenstockError
from penstock.runtime.pipeline import Pipeline


def load_app(path: str | Path) -> Pipeline:
    """Run an app's file and give the one pipeline that it defines at its top level.

    Raises `DefinitionError` where there is no such file, where it fails, or where it has no pipeline or several.
    """
    path = Path(path)
    if not path.is_file():
        raise DefinitionError(f"there is no file {path}", hint="give the Python file that defines the pipeline")
    spec = importlib.util.spec_from_file_location(f"penstock_app_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except PenstockError:
        raise
    except (Exception, SystemExit) as error:
        place = _line(error, spec.origin)
        raise DefinitionError(f"{path}{place} failed when it was loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    pipelines = {id(each): each for each in vars(module).values() if isinstance(each, Pipeline)}
    if len(pipelines) != 1:
        found = "no pipeline" if not pipelines else f"{len(pipelines)} pipelines"
        raise DefinitionError(f"{path} defines {found}", hint='write one: pipeline = ps.Pipeline("cards")')
    return next(iter(pipelines.values()))


def _line(error: BaseException, file: str | None) -> str:
    """The line of this file that an error came through, if it did; a syntax error says its line itself."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", line {lines[-1]}," if lines else ""
