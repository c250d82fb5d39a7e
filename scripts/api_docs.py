"""Build the API reference from the docstrings: python scripts/api_docs.py [FOLDER] (default build/api).

Public names only; the folder holds plain HTML with a search box, index.html first. Exit code 1 when pdoc has to warn
of anything, such as an annotation that does not exist.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

PACKAGES = ("qa_train", "data_pipelines")


def build(folder: Path) -> list[str]:
    """Write the pages; returns pdoc's warnings."""
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
