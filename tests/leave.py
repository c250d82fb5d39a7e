"""The end of a forked child: it must not return into the test that it is a copy of."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def leave(work: Callable[[], object]) -> NoReturn:
    """Do ``work`` and end this process as Python would: with its exit code, or 1 and a trace."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
