"""Build the API reference from the docstrings: python scripts/api_docs.py [FOLDER] (default build/api).

Public names only; the folder holds plain HTML with a search box, index.html first. Exit code 1 when pdoc has to warn
of anything, such as an annotation that does not exist.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import qa_train
from qa_train import config
from qa_train.command_line.help import described

PACKAGES = ("qa_train", "data_pipelines")


def show_options() -> None:
    """Options are described by the comment above each, which pdoc does not read: every section lists its own."""
    for found in pkgutil.walk_packages(config.__path__, "qa_train.config."):
        for kind in vars(importlib.import_module(found.name)).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == found.name:
                listed = [f"- `{option}` {comment}" for option, comment in described(kind)]
                kind.__doc__ = "\n".join([inspect.getdoc(kind) or "", "", *listed])


def resolve_deferred() -> None:
    """Import what packages offer on first use: pdoc reads their dictionaries, not their ``__getattr__``."""
    for found in pkgutil.walk_packages(qa_train.__path__, "qa_train."):
        if found.ispkg:
            package = importlib.import_module(found.name)
            for name in getattr(package, "__all__", ()):
                setattr(package, name, getattr(package, name))


def build(folder: Path) -> list[str]:
    """Write the pages; returns pdoc's warnings."""
    show_options()
    resolve_deferred()
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        pdoc.pdoc(*PACKAGES, output_directory=folder)
    return [str(each.message) for each in found if issubclass(each.category, UserWarning)]


def main() -> int:
    """Build into the folder of the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/api")
    problems = build(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{folder / 'index.html'}: {len(list(folder.rglob('*.html')))} pages, {len(problems)} warnings")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
