"""The table of commands: name, arguments, one-line description, and the function that runs it.

Help, completion, "did you mean" and the parsing of words all read this table. The signature of the function defines the
arguments of a command:

- ``options``: a dataclass; its fields are the command's ``key=value`` words.
- ``paths``: files and folders, at least one. ``settings``: settings of a training stage. ``words``: anything else.
- ``name``: the name of the command, where one function runs several.

Modules are imported when their command is asked for, so that ``qa-train --help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_type_hints

from qa_train.config import STAGES
from qa_train.utils.closest import did_you_mean
from qa_train.utils.masking import masked
from qa_train.utils.process import is_first_rank


@dataclass(frozen=True)
class Command:
    """One command; ``name`` has two words for those of a group (``data index``)."""

    name: str
    # What follows the name, as help shows it.
    usage: str
    about: str
    # MODULE:FUNCTION, seen from qa_train.commands; "": an entry point, because qa_train never imports data_pipelines.
    function: str = ""

    def load(self) -> Callable[..., int]:
        """The function; ValueError when no installed package brings it."""
        if self.function:
            module, _, name = self.function.partition(":")
            loaded: Callable[..., int] = getattr(import_module(f".{module}", "qa_train.commands"), name)
            return loaded
        from importlib.metadata import entry_points

        found = list(entry_points(group="qa_train.data_commands", name=self.name.split()[-1]))
        if not found:
            raise ValueError(f"{self.name}: no installed package has this command: install qa-train again")
        entry: Callable[..., int] = found[0].load()
        return entry

    def takes(self) -> dict[str, Any]:
        """The parameters of the function with their types, in order."""
        return {name: kind for name, kind in get_type_hints(self.load()).items() if name != "return"}

    @property
    def options(self) -> type[Any] | None:
        """The dataclass of its ``key=value`` words, or None."""
        return self.takes().get("options")


@dataclass(frozen=True)
class Section:
    """Commands that help shows together."""

    title: str
    commands: tuple[Command, ...]
    note: str = ""


TRAIN = Section(
    "train",
    tuple(Command(stage.name, "", stage.about, "train_stage:train") for stage in STAGES.values()),
    """\
  Any setting can be given as key=value; STAGE --help lists settings and
  experiments, --cfg job shows the resulting configuration. The same command
  again resumes from the newest complete checkpoint in run.dir.
    qa-train pretrain experiment=smoke run.dir=runs/smoke
    torchrun --nproc-per-node 2 -m qa_train pretrain experiment=smoke \\
      run.dir=runs/smoke2""",
)
BEFORE = Section(
    "before a run, without a GPU",
    (
        Command("plan", "STAGE [KEY=VALUE ...]", "parameters, memory of each GPU, time and cost", "plan:plan"),
        Command("plan data", "[KEY=VALUE ...]", "effective mixture, epochs, and what is skipped", "plan:plan_data"),
        Command("doctor", "[KEY=VALUE ...]", "is this machine ready, are these files sound?", "doctor:doctor"),
    ),
)
USE = Section(
    "use a model",
    (
        Command("eval", "[KEY=VALUE ...]", "answer and score benchmarks or your own questions", "answering:evaluate"),
        Command("chat", "checkpoint=RUN", "ask about audio, once or in a conversation", "answering:chat"),
        Command("serve", "checkpoint=RUN", "OpenAI-compatible server with a chat page", "answering:serve"),
        Command("export", "checkpoint=RUN out=DIR", "a Hugging Face folder for stock transformers", "export:export"),
        Command("convert", "checkpoint=RUN", "join a checkpoint's ZeRO parts, without GPUs", "export:convert"),
        Command(
            "pairs",
            "checkpoint=RUN shards=SHARDS out=DIR",
            "preference pairs for dpo from the model's own answers",
            "answering:pairs",
        ),
        Command(
            "dashboard",
            "RUNS_DIR [out=PAGE | serve=true]",
            "runs compared on one page, from their metrics",
            "dashboard:dashboard",
        ),
    ),
    """\
  RUN is the run.dir of a training, one of its checkpoints, a Hugging Face
  folder or a hub id.
    qa-train eval checkpoint=RUN data=FILE.jsonl out=DIR
    qa-train eval checkpoint=RUN benchmarks=[librispeech_clean,my.yaml] \\
      data_root=DIR out=DIR
    qa-train eval compare=[DIR,DIR]""",
)
DATA = (
    Section(
        "data: make shards",
        (
            Command("data import", "CORPUS path=DIR out=DIR", "a public corpus, a table, Kaldi, Lhotse or HF data"),
            Command("data from-jsonl", "FILE OUT-%05d.tar", "chats and pairs in other tools' JSONL", "data:from_jsonl"),
            Command("data index", "SHARDS", "make tars of KEY.flac + KEY.json trainable", "data:index"),
            Command(
                "data label", "shards=SHARDS out=DIR checkpoint=RUN", "transcripts, captions, languages by a model"
            ),
            Command("data catalog", "OUT SHARDS", "one file that opens thousands of shards at once", "data:catalog"),
        ),
        "  SHARDS are .tar files, folders or patterns of them, or URLs.",
    ),
    Section(
        "data: make chats and pairs",
        (
            Command("data voice-chat", "path=FILE out=DIR", "spoken questions from written chats"),
            Command("data analysis", "shards=SHARDS out=DIR", "questions and answers from annotations"),
            Command("data mixtures", "speech=SHARDS sounds=SHARDS out=DIR", "chats about speech over sounds"),
            Command("data preferences", "shards=SHARDS out=DIR", "preference pairs, made by rules"),
            Command(
                "data rewrite", "shards=SHARDS out=DIR model=NAME", "paraphrase chats with an LLM and validate them"
            ),
        ),
    ),
    Section(
        "data: look at shards",
        (
            Command("data inspect", "SHARD[:KEY]", "contents of a shard or of one record", "data_tools:inspect"),
            Command("data validate", "SHARDS", "read everything, report every fault", "data_tools:validate"),
            Command("data stats", "SHARDS", "hours by task and language, lengths, tokens", "data_tools:stats"),
            Command("data words", "SHARDS out=FILE", "the rare words of transcripts, for hotwords", "data_tools:words"),
            Command("data sample", "SHARDS", "print records, write clips to play", "data_tools:sample"),
            Command("data clean", "SHARDS", "count or drop records that fail the filters", "data_tools:clean"),
            Command("data to-jsonl", "SHARDS out=FILE", "JSONL and audio files for other tools", "data:to_jsonl"),
            Command(
                "data tokens",
                "[experiment=NAME] [data=NAME] [KEY=VALUE ...]",
                "count a run's tokens once, so that it plans faster",
                "data:tokens",
            ),
            Command("data order", "[KEY=VALUE ...]", "digest of a run's sample order", "data:order"),
        ),
    ),
)
SHELL = Section(
    "shell",
    (
        Command(
            "completion", "bash|zsh", "complete commands and keys in the shell", ".command_line.completion:completion"
        ),
    ),
)

SECTIONS = (TRAIN, BEFORE, USE, *DATA, SHELL)
COMMANDS = {command.name: command for section in SECTIONS for command in section.commands}
# Commands that load torch, which takes seconds: they say so first.
HEAVY = {*STAGES, *"plan doctor eval chat serve export convert pairs".split(), "plan data"}
HEAVY |= {f"data {name}" for name in "analysis preferences label rewrite tokens order".split()}
# What the commands are called in ms-swift, LLaMA-Factory, TRL and transformers.
_ELSEWHERE = {
    "pretrain, sft or dpo": "train run pt",
    "sft": "finetune fine-tune finetuning",
    "dpo": "rlhf",
    "dpo, which needs pairs": "kto orpo",
    "chat, or eval for a file of questions": "infer inference predict generate test demo",
    "serve": "deploy api app webui web-ui web server",
    "export": "merge merge-lora merge_lora",
    "export with push=owner/name": "upload push",
    "doctor": "env check",
}
# Words of a stage that only show its configuration, which is quick.
_LOOKS = {"--cfg", "-c", "--cfg=job", "--cfg=hydra", "--cfg=all", "--info", "-i", "--hydra-help"}
# First words; those that are not commands themselves are groups.
NAMES = tuple(dict.fromkeys(name.split()[0] for name in COMMANDS))


def find(words: list[str]) -> tuple[Command | None, list[str]]:
    """The command that the words begin with, and the words after it; None for a group alone (``data``).

    Raises:
        ValueError: no such command, with the nearest one.
    """
    for size in (2, 1):
        if command := COMMANDS.get(" ".join(words[:size])):
            return command, words[size:]
    if words[0] not in NAMES:
        here = next((name for name, others in _ELSEWHERE.items() if words[0] in others.split()), None)
        hint = f"here it is {here}; " if here else did_you_mean(words[0], NAMES)
        raise ValueError(f"no command {words[0]!r}: {hint}there are {', '.join(NAMES)}")
    if len(words) == 1 or words[1] in ("-h", "--help", "help"):
        return None, words[1:]
    known = inside(words[0])
    raise ValueError(
        f"{words[0]}: no command {words[1]!r}: {did_you_mean(words[1], known)}there are {', '.join(known)}"
    )


def inside(group: str) -> list[str]:
    """Second words of the commands of a group."""
    return [name.split()[1] for name in COMMANDS if name.startswith(f"{group} ")]


def run(name: str, words: list[str]) -> int:
    """Parse the words as the command's function takes them, and call it; returns the exit code.

    Raises:
        ValueError: words that the command does not take, or what its function refuses.
    """
    from qa_train.config import parse_options
    from qa_train.config.places import search_also, without_config_dirs
    from qa_train.config.words import check_bare, check_words, is_place, option_fields, with_home

    words = [with_home(word) for word in words]
    command = COMMANDS[name]
    takes = command.takes()
    kind = takes.get("options")
    names = [field.name for field in option_fields(kind)] if kind else []
    settings, places = "settings" in takes, [word for word in words if "paths" in takes and is_place(word)]
    check_words(
        words, name, lambda key: _habit(key, names, settings), lambda key: _is_key(key, names, settings), places
    )
    if settings:
        from qa_train.config.nearest import is_setting

        check_bare(words, name, lambda word: is_setting(word) or word in names)
        rest, folders = without_config_dirs(words)
        search_also(folders)
        # Hydra's own command line has the flag, and records it.
        words = words if name in STAGES else rest
    arguments: tuple[Any, ...]
    if kind is None:
        arguments = (words, name) if "name" in takes else (words,)
    elif len(takes) == 1:
        arguments = (parse_options(kind, words, name),)
    else:
        own = [word for word in words if "=" in word and word.partition("=")[0].partition(".")[0] in names]
        rest = [word for word in words if word not in own]
        if "paths" in takes:
            _check_paths(rest, names, command)
        arguments = (rest, parse_options(kind, own, name))
    _announce(name, words)
    return command.load()(*arguments) or 0


def _habit(key: str, options: Collection[str], settings: bool) -> str | None:
    """What a key of another tool is for a command with these options, and perhaps a stage's settings."""
    from qa_train.config.habits import option_habit
    from qa_train.config.nearest import meant

    if key in options:
        return None
    return meant(key) if settings else option_habit(key, options)


def _is_key(key: str, options: Collection[str], settings: bool) -> bool:
    """Whether it is one of these options, or perhaps a stage's setting."""
    from qa_train.config.nearest import is_setting

    return key.partition(".")[0] in options or (settings and is_setting(key))


def _announce(name: str, words: list[str]) -> None:
    """The first line of a command that loads torch, before it does: on stderr, of one rank."""
    if name in HEAVY and is_first_rank() and not _LOOKS & set(words):
        told = masked(" ".join([name, *words[:1]]))
        print(f"qa-train {told}: loading libraries, a few seconds", file=sys.stderr, flush=True)


def _check_paths(paths: list[str], names: list[str], command: Command) -> None:
    known = f"options: {', '.join(f'{name}=' for name in names)}"
    from qa_train.config.words import is_place

    for path in paths:
        name, equals, _ = path.partition("=")
        if equals and not is_place(path):
            hint = did_you_mean(name, names, "{}=", 0.75)
            raise ValueError(f"{command.name}: {path!r} is neither a path nor an option; {hint}{known}")
    if not paths:
        shards = " (SHARDS: paths, folders, globs or URLs of .tar shards)" if "SHARDS" in command.usage else ""
        raise ValueError(f"{command.name}: give {command.usage}{shards}; {known}")
