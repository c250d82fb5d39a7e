"""How a command ends: wrong use and bad input are one clear line, anything else shows its trace."""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Callable

from qa_train.config import STAGES
from qa_train.utils.atomic import FULL, complaint, is_full
from qa_train.utils.masking import MaskingFormatter, mask_errors, shown

# What a user can correct: paths, permissions and disk space.
_FILE_ERRORS = {
    getattr(errno, name)
    for name in "ENOENT ENOTDIR EISDIR EEXIST ENOTEMPTY EACCES EPERM EROFS ENOSPC EDQUOT EFBIG EMFILE".split()
}


# What gloo and NCCL say of a process that is gone; a store or a tracker closes connections too.
_LOST = re.compile(r"(?:pair\.cc|gloo|NCCL).*Connection (?:reset|closed) by peer|remote process exited", re.I | re.S)
_MORE_ROOM = "; free some, or choose another place"


def guarded(name: str, command: Callable[[], int]) -> int:
    """The exit code of a command; what a person can put right is one line on stderr and code 2.

    141, as a shell reports it, when stdout has no reader left (``| head``).
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        if name in STAGES:
            print(f"qa-train {name}: ended, because its output is no longer read", file=sys.stderr)
        return 141
    except KeyboardInterrupt:
        print(f"qa-train {name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = line_of(error, name)
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if line is None and name in STAGES and several and _LOST.search(str(error)):
            print(shown(traceback.format_exc()), end="", file=sys.stderr)
            print(f"qa-train {name}: another process of this run ended before: the cause is the first error of the "
                  "others, or the kernel's (dmesg: out of memory)", file=sys.stderr)  # fmt: skip
            return 1
        if line is None:
            raise
        return refused(name, line)


def line_of(error: Exception, name: str = "") -> str | None:
    """What the user of command ``name`` reads of an error that can be put right; None: the error keeps its trace."""
    from qa_train.config.nearest import explain
    from qa_train.data.stores.remote import RemoteError

    # Errors of Hydra and OmegaConf first: some of them are ValueErrors of several lines, others OSErrors.
    if (line := explain(error)) is not None:
        return line
    if isinstance(error, ValueError | RemoteError):
        return str(error)
    if "EADDRINUSE" in str(error) and (port := re.search(r"port: (\d+)", str(error))):
        return (
            f"port {port[1]} of this machine is in use: set another MASTER_PORT, or torchrun --rdzv-endpoint=HOST:PORT"
        )
    # Storage that fails a training has ended it as StopRun; what is left of its OSErrors keeps its trace.
    of_files = isinstance(error, FileNotFoundError | PermissionError) or name not in STAGES
    line = _about_files(error) if isinstance(error, OSError) and of_files else None
    if line is None and name not in STAGES and (full := complaint(error)) is not None and is_full(full):
        line = full + _MORE_ROOM
    return line


def refused(name: str, line: str) -> int:
    """Say why a command was not done, its name once; 2."""
    from qa_train.utils.terminal import layout

    named = name and line.startswith((f"{name}: ", f"{name} "))
    line = f"qa-train {line}" if named else f"qa-train{' ' * bool(name)}{name}: {line}"
    print(layout(sys.stderr).fold(shown(line)), file=sys.stderr)
    return 2


def _about_files(error: OSError) -> str | None:
    """One line about a path that is missing, not a folder, not writable ...; None for another error."""
    if error.errno is None or error.filename is None:
        return str(error) if isinstance(error, FileNotFoundError | PermissionError) else None
    if error.errno not in _FILE_ERRORS:
        return None
    hint = _MORE_ROOM if error.errno in FULL else ""
    return f"{error.filename}: {(error.strerror or '').lower()}{hint}"


def _reader_left() -> bool:
    """Whether stdout has no reader left, as in ``| head``; further output is then discarded."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def show_warnings() -> None:
    """Warnings and errors of every library go to stderr."""
    mask_errors()
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # peft and TRL ask under a name that transformers is about to drop.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("qa_train") and isinstance(logger, logging.Logger):
            logger.disabled = False


def leave_the_group() -> None:
    """Join the threads of torch's process group while Python still runs.

    A gloo thread that lets go of its last tensors while Python shuts down asks for a lock that is gone, and the
    process ends with SIGABRT although all was done. A trainer that is left in a circle of references still holds the
    group, hence the collection.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()
