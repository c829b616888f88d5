"""How the C library treats large freed blocks."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next allocation; elsewhere do nothing.

    Tensors of some megabytes are otherwise given back to the system at once and every step pays
    for page faults when it asks for them again: a third of the time of training a field.
    """
    if not sys.platform.startswith('linux'):
        return
    try:
        library = ctypes.CDLL('libc.so.6')
        library.mallopt(_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        # An arena of another thread than the first is made of pieces of 64 MB, too small for these
        # blocks: without this a node's worker takes nearly twice as long for an image.
        library.mallopt(_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return  # another C library (musl): it manages memory in its own way


def return_large_blocks() -> None:
    """Let glibc give large freed blocks back at once, after `keep_freed_memory`.

    For work whose blocks are few, very large and of many sizes: kept ones would leave gaps that
    nothing fits into, and nearly double the memory.
    """
    if not sys.platform.startswith('linux'):
        return
    try:
        library = ctypes.CDLL('libc.so.6')
        library.mallopt(_MMAP_THRESHOLD, 4 << 20)
        library.malloc_trim(0)
    except (OSError, AttributeError):
        return  # as above


def return_freed_memory() -> None:
    """Give freed blocks back to the system where `keep_freed_memory` kept them.

    Between two stages of a build: the second one asks for blocks of other sizes, which would come
    on top of what the first one left.
    """
    if not sys.platform.startswith('linux'):
        return
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    except (OSError, AttributeError):
        return  # as above
