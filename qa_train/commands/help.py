"""What the small commands take: for `qa-train COMMAND --help`, and for the shell (`qa-train completion bash|zsh`)."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any, cast

import omegaconf

from qa_train.commands.plan import PlanDataConfig
from qa_train.config import options
from qa_train.config.guide import complete_stage
from qa_train.config.planning import PlanConfig
from qa_train.config.sections import StorageConfig
from qa_train.config.stages import STAGES
from qa_train.dashboard import DashboardConfig
from qa_train.doctor import DoctorConfig

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

_USAGE = """qa-train completion bash|zsh: print what makes the shell complete commands, keys and experiments.

  eval "$(qa-train completion bash)"     now; in ~/.bashrc, in every shell (zsh: the same with zsh, in ~/.zshrc)"""

_ZSH = """# qa-train completion for zsh: eval "$(qa-train completion zsh)"
_qa_train() {
  local -a found
  found=(${(f)"$(qa-train completion query "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
  if (( $#found )); then compadd -S '' -- $found; else _files; fi
}
compdef _qa_train qa-train
"""

_DATA = "index from-jsonl to-jsonl inspect validate stats sample clean catalog order"


def completion(words: list[str], commands: list[str]) -> int:
    """Print the script of a shell, or answer its question. ValueError for another shell."""
    if words[:1] == ["query"]:
        line = " ".join(words[1:])
        print("\n".join(complete(line, commands)))
        return 0
    scripts = {"bash": _BASH, "zsh": _ZSH}
    if {"-h", "--help"} & set(words):
        print(_USAGE)
        return 0
    if len(words) != 1 or words[0] not in scripts:
        raise ValueError('completion: say for which shell: eval "$(qa-train completion bash)", or zsh')
    print(scripts[words[0]])
    return 0


def complete(line: str, commands: list[str]) -> list[str]:
    """What the last word of ``line`` (which begins with the program's name) could become."""
    words = line.split(" ")[1:]
    word, before = words[-1] if words else "", [w for w in words[:-1] if w]
    if not before:
        return [name for name in commands if name.startswith(word)]
    if before[0] in STAGES:
        return complete_stage(word)
    if before[0] == "plan":
        if len(before) == 1:
            return [name for name in (*STAGES, "data") if name.startswith(word)]
        return _options(PlanConfig, word) + complete_stage(word)
    if before[0] == "data":
        names = [*_DATA.split(), *(point.name for point in entry_points(group="qa_train.data_commands"))]
        return [name for name in names if name.startswith(word)] if len(before) == 1 else []
    if before[0] == "completion":
        return [name for name in ("bash", "zsh") if name.startswith(word)]
    kinds = _commands()
    return _options(kinds[before[0]], word) if before[0] in kinds else []


def command_help(words: list[str]) -> str | None:
    """What ``qa-train COMMAND --help`` prints: its options, defaults and comments; None if the command has its own."""
    plan = PlanDataConfig if words[1:2] == ["data"] else PlanConfig
    kind = plan if words[0] == "plan" else _commands().get(words[0])
    if kind is None:
        return None
    return "\n".join([inspect.cleandoc(kind.__doc__ or ""), "", *_described(kind, "")])


def _described(kind: type[Any], prefix: str) -> list[str]:
    """Every option with its default and comment, those of a section inside it by their dotted names."""
    defaults = {field.name: field.default for field in fields(kind)}
    sections = {field.name: field.default_factory for field in fields(kind) if is_dataclass(field.default_factory)}
    lines, comment, last = list[str](), list[str](), list[str]()
    # Options that a class inherits come first, as among its fields.
    classes = [base for base in reversed(kind.__mro__) if is_dataclass(base)]
    for line in map(str.strip, "\n".join(map(inspect.getsource, classes)).splitlines()):
        name = line.partition(":")[0]
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif name in sections:
            section = cast(type[Any], sections[name])
            if section is StorageConfig:  # the same in every command, and only for those who keep shards elsewhere
                last += [
                    f"  {prefix}{name}.KEY=",
                    *_wrapped(f"How shards at http(s), s3 and gs are read: {_names(section)}."),
                ]
            else:
                last += _described(section, f"{prefix}{name}.")
            comment = []
        elif name in defaults:
            lines.append(f"  {prefix}{name}={_default(defaults[name])}")
            lines += _wrapped(" ".join(comment))
            comment = []
    return lines + last


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")


def _names(kind: type[Any]) -> str:
    return ", ".join(field.name for field in fields(kind))


def _default(value: Any) -> str:
    if value is None or value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return "... (required)" if value == omegaconf.MISSING else str(value)


def _commands() -> dict[str, type[Any]]:
    """The options of commands whose dataclass is named after them: EvalConfig is that of eval."""
    found = {name: kind for name, kind in vars(options).items() if name.endswith("Config") and is_dataclass(kind)}
    named: dict[str, Any] = {name.removesuffix("Config").lower(): kind for name, kind in found.items()}
    return {"doctor": DoctorConfig, "dashboard": DashboardConfig, **named}


def _options(kind: type[Any], word: str) -> list[str]:
    return [f"{field.name}=" for field in fields(kind) if field.name.startswith(word)]
