"""Foreign texts inside Markdown: shown literally, never read as markup."""

from __future__ import annotations

import re

from qa_train.utils.masking import masked

# Emphasis, code, tags, entities, columns, strike-through; an underline inside a word is none.
_MARKS = re.compile(r"[\\`*<&|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(\[:]")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}


def plain(text: object) -> str:
    """One line of Markdown, or a table's cell, that shows ``text``, its keys and signatures masked."""
    line = " ".join(masked(text).split())
    return _MARKS.sub(lambda mark: _ENTITIES.get(mark[0], "\\" + mark[0]), line)


def code(text: object) -> str:
    """``text`` as code, in a table's cell or outside; a backtick becomes an apostrophe."""
    return "`" + " ".join(masked(text).split()).replace("`", "'").replace("|", "\\|") + "`"
