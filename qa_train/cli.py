"""The command line: `qa-train COMMAND key=value ...`.

Commands import what they need when they run, so that `qa-train --help` is quick.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from qa_train import __version__

HELP = f"""qa-train {__version__}: train audio-language models with the recipe of Qwen2-Audio

training stages (Hydra: any key can be overridden as key=value; --cfg job shows the result, --help the groups)
  pretrain   multi-task pretraining with natural-language prompts
  sft        voice chat and audio analysis together
  dpo        direct preference optimization
             e.g. qa-train pretrain experiment=smoke run.dir=runs/smoke
             or   torchrun --nproc-per-node 2 -m qa_train pretrain experiment=smoke run.dir=runs/smoke2
             The same command again resumes from the newest complete checkpoint.

using a model
  eval       checkpoint=RUN data=FILE.jsonl out=DIR     answer and score a file of questions
             checkpoint=RUN benchmarks=[librispeech_clean,my.yaml] data_root=DIR out=DIR   benchmarks, with a report
             out=DIR step=score                         score again without the model
             compare=[A,B]                              two evaluations item by item, with significance
  chat       checkpoint=RUN [audio=FILE] [text=TEXT]    ask about audio, once or in a conversation
  pairs      checkpoint=RUN shards=TARS out=DIR         preference pairs from its own answers, by=wer or by=judge
  serve      checkpoint=RUN [port=8000]                 OpenAI-compatible server, with a chat page
  export     checkpoint=RUN out=DIR                     a Hugging Face folder for stock transformers

looking after it
  doctor     [checkpoint=RUN data=SHARDS run=DIR]       is this machine ready, are these files sound; with remedies
  dashboard  RUNS_DIR [out=page.html]                   runs compared on one page, from their metrics.jsonl
  completion bash|zsh                                   eval "$(qa-train completion bash)"

data
  data index PATH...         make WebDataset tars of KEY.flac + KEY.json trainable
  data from-jsonl FILE OUT   turn messages + audios JSONL into shards
  data to-jsonl PATH... out=FILE.jsonl [task=asr]   and back
  data import CORPUS path=DIR out=DIR   a public corpus or a foreign list as shards (data import --list)
  data inspect SHARD[:KEY]   what a shard, or one record, holds
  data validate PATH...      read everything again and print every fault (exit code 1 when there is one)
  data stats PATH...         hours by task and language, lengths, tokens (tokenizer=T tasks=asr,lid)
  data sample PATH...        print a few records; out=DIR writes files to play and plots
  data clean PATH...         count what the filters refuse; apply=true takes it out of the indexes
  data catalog OUT SHARDS... one file that opens many shards at once (OUT ends in .catalog.parquet)
  plan STAGE [experiment=... gpu=h100 gpus=8 zero=2 price=P]
                             parameters, memory of each GPU, time and cost, without a GPU
  plan data [stage=S steps=N json=FILE] [experiment=...]
                             what a run trains on: mixture, epochs, fill, balance over ranks, what is left out
  data order [stage=S steps=N world_size=W num_workers=K] [experiment=...]
                             digest of the order in which a run trains on the samples
  data COMMAND --help        further commands: {{pipelines}}

CHECKPOINT is a run folder, one of its checkpoints, a Hugging Face folder or a hub id.
"""


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 failure, 2 wrong use, 75 stopped by a signal."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(pipelines=", ".join(sorted(_pipelines())) or "none installed"))
        sys.exit(0 if words else 2)
    if words[0] in ("-V", "--version"):
        print(f"qa-train {__version__}")
        sys.exit(0)
    commands: dict[str, Callable[[list[str]], int]] = {
        "pretrain": lambda rest: _stage("pretrain", rest),
        "sft": lambda rest: _stage("sft", rest),
        "dpo": lambda rest: _stage("dpo", rest),
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
        print(f"qa-train: no command {words[0]!r}; there are {', '.join(commands)}", file=sys.stderr)
        sys.exit(2)
    if {"-h", "--help"} & set(words[1:]):
        from qa_train.completion import command_help

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
    process ends with SIGABRT although all was done.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _show_warnings() -> None:
    """Warnings and errors of every library go to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True)
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
    except (ValueError, FileNotFoundError) as error:
        print(f"qa-train {name}: {str(error).removeprefix(f'{name}: ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"qa-train {name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from qa_train.config.nearest import explain
        from qa_train.data.remote import RemoteError

        line = str(error) if isinstance(error, RemoteError | PermissionError) else explain(error)
        if line is None:
            raise
        print(f"qa-train {name}: {line}", file=sys.stderr)
        return 2


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

    register()
    check_experiment(overrides)
    check_sweep(overrides)
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

    sys.argv = [f"qa-train {stage}", *overrides]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=stage)(task)()
    for folder, value in sorted(results.items(), key=lambda result: result[1]):
        print(f"{folder}: run.objective {value:.4g}")
    return max(codes, default=0)


def _run_stage(stage: str, cfg: Any) -> int:
    from qa_train.train.rollback import RollBack, StopRun

    evaluation: Any = None
    if cfg.evaluation.every:
        from qa_train.held_out import HeldOut

        evaluation = HeldOut
    try:
        if stage == "pretrain":
            from qa_train.train.pretrain import pretrain

            return pretrain(cfg, evaluation=evaluation)
        if stage == "sft":
            from qa_train.train.sft import sft

            return sft(cfg, evaluation=evaluation)
        from qa_train.gates import Gates
        from qa_train.train.dpo import dpo

        return dpo(cfg, gates=Gates, evaluation=evaluation)
    except StopRun as error:
        print(f"qa-train {stage}: {error}", file=sys.stderr)
        return 75 if isinstance(error, RollBack) else 1


def _eval(words: list[str]) -> int:
    from qa_train.config import EvalConfig, parse_options

    options = parse_options(EvalConfig, words, "eval")
    from qa_train.eval.suite import evaluate

    return evaluate(options)


def _chat(words: list[str]) -> int:
    from qa_train.config import ChatConfig, parse_options

    options = parse_options(ChatConfig, words, "chat")
    from qa_train.infer.chat import chat

    return chat(options)


def _pairs(words: list[str]) -> int:
    from qa_train.config import PairsConfig, parse_options

    options = parse_options(PairsConfig, words, "pairs")
    from qa_train.pairs_cli import pairs

    return pairs(options)


def _serve(words: list[str]) -> int:
    from qa_train.config import ServeConfig, parse_options

    options = parse_options(ServeConfig, words, "serve")
    from qa_train.infer.server import serve

    return serve(options)


def _export(words: list[str]) -> int:
    from qa_train.config import ExportConfig, parse_options

    options = parse_options(ExportConfig, words, "export")
    from qa_train.export import export

    done = export(options.checkpoint, options.out, results=options.results)
    print(
        f"{done.path}: {done.parameters / 1e6:,.1f} M parameters, model card in README.md; stock transformers gives "
        f"the same logits for a probe clip (largest difference {done.max_difference:.1e} of the largest logit)"
    )
    return 0


def _plan(words: list[str]) -> int:
    from qa_train.plan_cli import plan

    return plan(words)


def _doctor(words: list[str]) -> int:
    from qa_train.doctor import doctor

    return doctor(words)


def _dashboard(words: list[str]) -> int:
    from qa_train.dashboard import dashboard

    return dashboard(words)


def _completion(words: list[str], commands: list[str]) -> int:
    from qa_train.completion import completion

    return completion(words, commands)


def _data(words: list[str]) -> int:
    from qa_train import data_cli, data_tools

    own: dict[str, Callable[[list[str]], int]] = {
        "index": data_cli.index,
        "from-jsonl": data_cli.from_jsonl,
        "to-jsonl": data_cli.to_jsonl,
        "order": data_cli.order,
        "catalog": data_cli.catalog,
        "rewrite": data_cli.rewrite,
        **data_tools.COMMANDS,
    }
    pipelines = _pipelines()
    name = words[0] if words else ""
    if name in own:
        if {"-h", "--help"} & set(words[1:]):
            print(data_cli.command_help(name, own[name]))
            return 0
        return own[name](words[1:])
    if name in pipelines:
        return int(pipelines[name].load()(words[1:]) or 0)
    raise ValueError(f"data: no command {name!r}; there are {', '.join([*own, *sorted(pipelines)])}")


def _pipelines() -> dict[str, Any]:
    """Commands of data_pipelines, found by entry point: qa_train never imports that package."""
    return {point.name: point for point in entry_points(group="qa_train.data_commands")}
