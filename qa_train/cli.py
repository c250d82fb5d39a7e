"""The command line: `qa-train COMMAND key=value ...`.

Commands import what they need when they run, so that `qa-train --help` is quick.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from qa_train import __version__
from qa_train.utils.launch import end_with_launcher, without_local_rank

# What a person can mend: paths, rights and room.
_FILE_ERRORS = {
    getattr(errno, name) for name in "ENOENT ENOTDIR EISDIR EEXIST ENOTEMPTY EACCES EPERM EROFS ENOSPC EDQUOT".split()
}

DATA_HELP = """data (SHARDS: .tar files, folders or patterns of them; URLs too)
  make shards
    data import CORPUS path=DIR out=DIR [split=SPLIT]   a public corpus, a table, Kaldi, Lhotse or Hugging Face data
    data import --list                                  the corpora, with licence and splits
    data from-jsonl FILE.jsonl OUT-%05d.tar             chats and pairs with their audio, as other tools use them
    data index SHARDS                                   make tars of KEY.flac + KEY.json trainable: an index each
    data catalog OUT.catalog.parquet SHARDS             one file that opens thousands of shards at once
  make chats and pairs
    data voice-chat path=FILE.jsonl out=DIR             spoken questions from written chats
    data analysis shards=SHARDS out=DIR                 questions and answers from transcripts, captions and labels
    data mixtures speech=SHARDS sounds=SHARDS out=DIR   chats about speech over sounds, and about two recordings
    data preferences shards=SHARDS out=DIR              preference pairs, made by rules
    data rewrite shards=SHARDS out=DIR url=URL model=M  chats said anew by a language model, and checked
  look at them
    data inspect SHARD[:KEY]                            what a shard, or one record, holds
    data validate SHARDS                                read all again, name every fault (exit code 1 if there is one)
    data stats SHARDS                                   hours by task and language, lengths, tokens
    data sample SHARDS [n=3 out=DIR]                    print some records; write files to play, and plots
    data clean SHARDS [apply=true]                      count what the filters refuse; take it out of the indexes
    data to-jsonl SHARDS out=FILE.jsonl [task=asr]      shards as JSONL + audio files, for other tools
    data order [stage=STAGE steps=N ...]                digest of the order in which a run trains on the samples
"""

HELP = f"""qa-train {__version__}: train audio-language models with the recipe of Qwen2-Audio

qa-train COMMAND [key=value ...]         qa-train COMMAND --help explains one command

train (any setting can be given as key=value; --help lists settings and experiments, --cfg job shows the result)
  pretrain   multi-task pretraining with natural-language prompts
  sft        instruction tuning: voice chat and audio analysis together
  dpo        preference optimization on pairs of a better and a worse answer
             e.g. qa-train pretrain experiment=smoke run.dir=runs/smoke
             or   torchrun --nproc-per-node 2 -m qa_train pretrain experiment=smoke run.dir=runs/smoke2
             The same command again goes on from the newest complete checkpoint in run.dir.

before a run, without a GPU
  plan STAGE [experiment=... gpu=h100 gpus=8 zero=2 price=P]      parameters, memory of each GPU, time and cost
  plan data [stage=STAGE steps=N experiment=... data=...]         what it trains on: mixture, epochs, what is left out
  doctor [checkpoint=RUN data=SHARDS run=RUN]                     is this machine ready, are these files sound

use a model (RUN: the run.dir of a training, one of its checkpoints, a Hugging Face folder or a hub id)
  eval       checkpoint=RUN data=FILE.jsonl out=DIR               answer and score your own questions
             checkpoint=RUN benchmarks=[librispeech_clean,my.yaml] data_root=DIR out=DIR    published benchmarks
             out=DIR step=score                                   score the answers in DIR again, without the model
             compare=[DIR,DIR]                                    two evaluations item by item, with significance
  chat       checkpoint=RUN [audio=FILE text=TEXT]                ask about audio, once or in a conversation
  serve      checkpoint=RUN [port=8000]                           OpenAI-compatible server, with a chat page
  export     checkpoint=RUN out=DIR                               a Hugging Face folder for stock transformers
  pairs      checkpoint=RUN shards=SHARDS out=DIR                 preference pairs for dpo from its own answers
  dashboard  RUNS_DIR [out=page.html]                             runs compared on one page, from their metrics.jsonl

{DATA_HELP}
shell completion: eval "$(qa-train completion bash)", or zsh
"""


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 failure, 2 wrong use, 73 run.dir is another's, 75 stopped."""
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    end_with_launcher()
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        sys.exit(0 if words else 2)
    if words[0] in ("-V", "--version"):
        print(f"qa-train {__version__}")
        sys.exit(0)
    from qa_train.config.stages import STAGES

    commands: dict[str, Callable[[list[str]], int]] = {
        **{name: partial(_stage, name) for name in STAGES},
        "eval": _eval,
        "chat": _chat,
        "serve": _serve,
        "pairs": _pairs,
        "export": _export,
        "plan": _plan,
        "doctor": _doctor,
        "dashboard": _dashboard,
        "data": _data,
    }
    commands["completion"] = lambda rest: _completion(rest, list(commands))
    command = commands.get(words[0])
    if command is None:
        from qa_train.config.words import did_you_mean

        hint = did_you_mean(words[0], commands)
        print(f"qa-train: no command {words[0]!r}: {hint}there are {', '.join(commands)}", file=sys.stderr)
        sys.exit(2)
    if {"-h", "--help"} & set(words[1:]):
        from qa_train.commands.help import command_help

        if (text := command_help(words)) is not None:
            print(text)
            sys.exit(0)
    _show_warnings()
    code = _guarded(words[0], command, words[1:])
    if code not in (2, 130):  # After an error other ranks may still wait for this one: torchrun ends them.
        _leave_the_group()
    sys.exit(code)


def _leave_the_group() -> None:
    """Join the threads of torch's process group while Python still runs.

    A gloo thread that lets go of its last tensors while Python shuts down asks for a lock that is gone, and the
    process ends with SIGABRT although all was done. A trainer that is left in a circle of references still holds the
    group, hence the collection.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()


def _show_warnings() -> None:
    """Warnings and errors of every library go to stderr."""
    from qa_train.utils.masking import MaskingFormatter, mask_errors

    mask_errors()
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("qa_train") and isinstance(logger, logging.Logger):
            logger.disabled = False


def _guarded(name: str, command: Callable[[list[str]], int], rest: list[str]) -> int:
    """Wrong use and bad input are one clear line; anything else shows its trace."""
    try:
        code = command(rest)
        if name in ("data", "plan"):
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        if name not in ("data", "plan") or not _reader_left():
            raise
        return 141
    except ValueError as error:
        return _refused(name, str(error))
    except KeyboardInterrupt:
        print(f"qa-train {name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from qa_train.config.nearest import explain
        from qa_train.config.stages import STAGES
        from qa_train.data.shards.remote import RemoteError

        if isinstance(error, RemoteError):
            return _refused(name, str(error))
        # A full disk in the middle of a training is no wrong use: its trace and code stay.
        of_files = isinstance(error, FileNotFoundError | PermissionError) or name not in STAGES
        # Hydra's errors first: some of them are OSErrors, too.
        line = explain(error)
        if line is None and isinstance(error, OSError) and of_files:
            line = _about_files(error)
        if line is None:
            raise
        return _refused(name, line)


def _refused(name: str, line: str) -> int:
    """Say why a command was not done, its name once; 2."""
    from qa_train.utils.masking import masked

    line = f"qa-train {line}" if line.startswith((f"{name}: ", f"{name} ")) else f"qa-train {name}: {line}"
    print(masked(line), file=sys.stderr)
    return 2


def _about_files(error: OSError) -> str | None:
    """One line about a path that is not there, is no folder, may not be written ...; None for another error."""
    if error.errno is None or error.filename is None:
        return str(error) if isinstance(error, FileNotFoundError | PermissionError) else None
    if error.errno not in _FILE_ERRORS:
        return None
    hint = "; free some, or choose another place" if error.errno == errno.ENOSPC else ""
    return f"{error.filename}: {(error.strerror or '').lower()}{hint}"


def _reader_left() -> bool:
    """Whether nobody reads stdout any more, as in ``| head``; what is left to say then goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _stage(stage: str, overrides: list[str]) -> int:
    if {"-h", "--help"} & set(overrides):
        from qa_train.config.guide import stage_help

        print(stage_help(stage))
        return 0
    import hydra

    from qa_train.config import config_dir, register, to_stage_config
    from qa_train.config.guide import check_experiment
    from qa_train.config.sweep import check_sweep, is_sweep, objective
    from qa_train.config.words import check_words

    register()
    check_words(overrides, stage)
    check_experiment(overrides)
    check_sweep(overrides)
    if "--resolve" in overrides and not {"-p", "--package"} & set(overrides):
        from qa_train.commands.plan import print_resolved

        return print_resolved(stage, overrides)
    # Hydra raises what it refuses, instead of printing it and leaving; _guarded says it in one line.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    codes: list[int] = []
    results: dict[str, float] = {}

    def task(raw: Any) -> float | None:
        # A launcher may run this in another process, on another machine.
        register()
        # Hydra's setup takes the handlers away and switches loggers off: skipped samples and steps would go unsaid.
        _show_warnings()
        # Hydra would shorten the trace of any error; errors are handled here instead.
        codes.append(_guarded(stage, lambda _: _run_stage(stage, to_stage_config(raw)), []))
        if not is_sweep(overrides):
            return None
        if codes[-1]:
            raise ValueError(f"the job with run.dir={raw.run.dir} ended with code {codes[-1]} (its message is above)")
        results[raw.run.dir] = objective(raw.run.dir, raw.run.objective)
        return results[raw.run.dir]

    sys.argv = [f"qa-train {stage}", *settings_first(overrides)]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=stage)(task)()
    for folder, value in sorted(results.items(), key=lambda result: result[1]):
        print(f"{folder}: run.objective {value:.4g}")
    return max(codes, default=0)


def settings_first(words: list[str]) -> list[str]:
    """Settings before flags: argparse takes settings in one piece, one after a flag would be unknown to it."""
    settings = [word for word in words if word.startswith(("~", "+")) or ("=" in word and not word.startswith("-"))]
    return [*settings, *(word for word in words if word not in settings)]


def _run_stage(stage: str, cfg: Any) -> int:
    from qa_train.config.stages import STAGES
    from qa_train.train.job.owner import EXIT_OWNED, Owned, release
    from qa_train.train.safety.rollback import RollBack, StopRun

    callbacks: list[Any] = []
    if cfg.evaluation.every:
        from qa_train.callbacks.held_out import HeldOut

        callbacks.append(HeldOut)
    try:
        return STAGES[stage].load()(cfg, callbacks=callbacks)
    except StopRun as error:
        _refused(stage, str(error))
        return 75 if isinstance(error, RollBack) else 1
    except Owned as error:
        _refused(stage, str(error))
        return EXIT_OWNED
    finally:
        release()


def _check_device(device: str) -> None:
    """ValueError for a device that this machine, or this build of torch, does not have."""
    if device == "cpu":
        return
    import torch

    # Each of torchrun's processes on its own device.
    index = os.environ.get("LOCAL_RANK")
    try:
        torch.empty(0, device=f"cuda:{index}" if device == "cuda" and index is not None else device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={device} cannot be used ({reason}): use device=cpu, or see: qa-train doctor"
        ) from error


def _eval(words: list[str]) -> int:
    from qa_train.config import EvalConfig, parse_options

    options = parse_options(EvalConfig, words, "eval")
    if options.checkpoint is not None and options.compare is None and options.step != "score":
        _check_device(options.device)
    from qa_train.eval.suite import evaluate

    return evaluate(options)


def _chat(words: list[str]) -> int:
    from qa_train.config import ChatConfig, parse_options

    options = parse_options(ChatConfig, words, "chat")
    _check_device(options.device)
    from qa_train.infer.chat import chat

    return chat(options)


def _pairs(words: list[str]) -> int:
    from qa_train.config import PairsConfig, parse_options

    options = parse_options(PairsConfig, words, "pairs")
    _check_device(options.device)
    from qa_train.commands.pairs import pairs

    return pairs(options)


def _serve(words: list[str]) -> int:
    from qa_train.config import ServeConfig, parse_options

    options = parse_options(ServeConfig, words, "serve")
    _check_device(options.device)
    from qa_train.infer.server import serve

    return serve(options)


def _export(words: list[str]) -> int:
    from qa_train.config import ExportConfig, parse_options

    options = parse_options(ExportConfig, words, "export")
    from qa_train.export.hugging_face import export

    done = export(
        options.checkpoint,
        options.out,
        results=options.results,
        verify=options.verify,
        allow_missing=options.allow_missing,
    )
    print(
        f"{done.path}: {done.parameters / 1e6:,.1f} M parameters, model card in README.md; stock transformers gives "
        f"the same logits for a probe clip (largest difference {done.max_difference:.1e} of the largest logit)"
    )
    return 0


def _plan(words: list[str]) -> int:
    from qa_train.commands.plan import plan

    return plan(words)


def _doctor(words: list[str]) -> int:
    from qa_train.doctor import doctor

    return doctor(words)


def _dashboard(words: list[str]) -> int:
    from qa_train.dashboard import dashboard

    return dashboard(words)


def _completion(words: list[str], commands: list[str]) -> int:
    from qa_train.commands.help import completion

    return completion(words, commands)


def _data(words: list[str]) -> int:
    from qa_train.commands import data as data_cli
    from qa_train.commands import data_tools

    own: dict[str, Callable[[list[str]], int]] = {
        "index": data_cli.index,
        "from-jsonl": data_cli.from_jsonl,
        "to-jsonl": data_cli.to_jsonl,
        "order": data_cli.order,
        "catalog": data_cli.catalog,
        **data_tools.COMMANDS,
    }
    pipelines = _pipelines()
    name = words[0] if words else ""
    if name in ("", "-h", "--help", "help"):
        print(f"{DATA_HELP}\nqa-train data COMMAND --help explains one command")
        return 0 if words else 2
    if name in own:
        if {"-h", "--help"} & set(words[1:]):
            print(data_cli.command_help(name, own[name]))
            return 0
        return own[name](words[1:])
    if name in pipelines:
        return int(pipelines[name].load()(words[1:]) or 0)
    from qa_train.config.words import did_you_mean

    known = [*own, *sorted(pipelines)]
    raise ValueError(f"data: no command {name!r}: {did_you_mean(name, known)}there are {', '.join(known)}")


def _pipelines() -> dict[str, Any]:
    """Commands of data_pipelines, found by entry point: qa_train never imports that package."""
    return {point.name: point for point in entry_points(group="qa_train.data_commands")}
