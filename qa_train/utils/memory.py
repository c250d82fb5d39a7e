"""How the C library hands out memory for tensors on the CPU."""

from __future__ import annotations

import ctypes
from functools import cache

# mallopt(3): parameters of glibc's malloc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# The largest that glibc takes (HEAP_MAX_SIZE / 2 on 64 bits), and the largest int.
_LARGEST_KEPT, _NEVER = 32 * 2**20, 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of up to 32 MiB instead of returning each to the kernel. Whether it does.

    By default a tensor of more than 128 KiB is a mapping of its own: each operation asks the kernel for zeroed pages and
    gives them back. A CPU training step of small batches spends about a tenth of its time there. A process keeps up to
    the most that such blocks ever took together. Other C libraries have no ``mallopt``: nothing is changed there.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 2 * _LARGEST_KEPT))
    return all([mallopt(name, value) for name, value in wanted])
