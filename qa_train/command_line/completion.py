"""`qa-train completion bash|zsh`: shell completion, from the table of commands."""

from __future__ import annotations

from qa_train.command_line.command_table import NAMES, find, inside
from qa_train.config import STAGES
from qa_train.config.guide import complete_setting
from qa_train.config.words import option_fields

_BASH = """# qa-train completion for bash: eval "$(qa-train completion bash)"
_qa_train() {
  local line=${COMP_LINE:0:COMP_POINT} word
  word=${line##* }
  mapfile -t COMPREPLY < <(qa-train completion query "$line" 2>/dev/null)
  # bash counts "=" as the end of a word: what stands before it is on the line already.
  if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}"); fi
  if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
  return 0
}
complete -o default -F _qa_train qa-train
"""

_ZSH = """# qa-train completion for zsh: eval "$(qa-train completion zsh)"
_qa_train() {
  local -a found
  found=(${(f)"$(qa-train completion query "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
  if (( $#found )); then compadd -S '' -- $found; else _files; fi
}
compdef _qa_train qa-train
"""


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
    scripts = {"bash": _BASH, "zsh": _ZSH}
    if len(words) != 1 or words[0] not in scripts:
        raise ValueError('completion: name the shell: eval "$(qa-train completion bash)", or zsh')
    print(scripts[words[0]])
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
