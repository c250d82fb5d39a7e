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

    By default a large tensor is a separate mapping: each operation asks the kernel for zeroed pages and gives them
    back. A training step of the quickstart takes 10 % less CPU time without that. The process then keeps the peak
    memory of such blocks. Other C libraries have no ``mallopt``: no effect there.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 2 * _LARGEST_KEPT))
    taken = [mallopt(name, value) for name, value in wanted]
    return all(taken)
