"""`qa-train completion bash|zsh`: shell completion, from the table of commands."""

from __future__ import annotations

from pathlib import Path

from qa_train.command_line.command_table import NAMES, find, inside
from qa_train.config import STAGES
from qa_train.config.guide import complete_setting
from qa_train.config.words import option_fields

# completion.bash and completion.zsh, which ask `qa-train completion query LINE`.
_SCRIPTS = {path.suffix[1:]: path for path in Path(__file__).parent.glob("completion.*sh")}


def completion(words: list[str]) -> int:
    """Print what makes the shell complete commands, keys and experiments.

      eval "$(qa-train completion bash)"   now; in ~/.bashrc, in every shell
      eval "$(qa-train completion zsh)"    the same for zsh, in ~/.zshrc

    Raises:
        ValueError: another shell.
    """
    if words[:1] == ["query"]:
        print("\n".join(complete(" ".join(words[1:]))))
        return 0
    if len(words) != 1 or words[0] not in _SCRIPTS:
        raise ValueError('completion: name the shell: eval "$(qa-train completion bash)", or zsh')
    print(_SCRIPTS[words[0]].read_text(encoding="utf-8"))
    return 0


def complete(line: str) -> list[str]:
    """What the last word of ``line`` (which begins with the program's name) could become."""
    words = line.split(" ")[1:]
    word, before = words[-1] if words else "", [each for each in words[:-1] if each]
    if not before:
        return [name for name in NAMES if name.startswith(word)]
    try:
        command, given = find(before)
    except ValueError:
        return []
    known = list[str]()
    if not given:
        known = inside(before[0]) if len(before) == 1 else []
        if command is not None:
            known += STAGES if command.usage.startswith("STAGE") else command.usage.split("|")
    if command is None or (command.usage.startswith("STAGE") and not given):
        return [name for name in known if name.startswith(word)]
    if command.options is not None:
        known += [f"{field.name}=" for field in option_fields(command.options)]
    found = [name for name in known if name.startswith(word) and " " not in name]
    return found + (complete_setting(word) if "settings" in command.takes() else [])
