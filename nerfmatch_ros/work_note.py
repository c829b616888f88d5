"""What compiled loops compute and read, told by themselves to whoever counts.

Operations of torch can be watched from outside, compiled loops cannot. Where nobody counts a note
costs nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# (name, floating-point operations, [(tensor or array, bytes read of it), ...])
Listener = Callable[[str, float, Sequence[tuple[Any, float]]], None]
_listeners: list[Listener] = []


def note_work(name: str, flops: float, reads: Sequence[tuple[Any, float]] = ()) -> None:
    """Tell what a compiled loop does.

    name: of the loop; flops: additions and multiplications, by formula; reads: tensors or arrays
    and how many bytes of them are read, each byte as often as it is.
    """
    for listener in _listeners:
        listener(name, flops, reads)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear of all work noted inside."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
