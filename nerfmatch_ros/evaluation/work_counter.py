"""Counts what the stages of a localization compute and move, in a pass of its own.

FLOPs, two a multiply-add, are those of matrix products, convolutions and attention, by torch's own
formulas, and those that compiled loops state of themselves (`work_note`). Bytes are the traffic
that no implementation of the stage could do without: of tensors that it did not make, what it
read, once; of tensors that it made, those that outlive it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass, field
from typing import Any

from nerfmatch_ros.work_note import listening
import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten
# Operations that read no more of their first tensor than they give.
_GATHERS = {aten.index, aten.gather, aten.embedding, aten.index_select, aten.take,
            aten.grid_sampler_2d}


@dataclass(frozen=True)
class Work:
    """What a stage does, by itself."""

    flops: dict[str, float] = field(default_factory=dict)  # by type of the numbers, 'float32', ...
    by_formula: float = 0.0  # FLOPs of compiled loops, which are among those of float32
    read: float = 0.0  # bytes
    written: float = 0.0  # bytes

    def __add__(self, other: 'Work') -> 'Work':
        """Give the work of both."""
        kinds = self.flops.keys() | other.flops.keys()
        return Work(
            {kind: self.flops.get(kind, 0.0) + other.flops.get(kind, 0.0) for kind in kinds},
            self.by_formula + other.by_formula, self.read + other.read,
            self.written + other.written)


class _Run:
    """One run of a stage: storages that it made, and parts of others that it touched."""

    def __init__(self):
        self.flops: dict[str, float] = {}
        self.by_formula = 0.0
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.read: dict[int, _Touched] = {}
        self.changed: dict[int, _Touched] = {}

    def work(self) -> Work:
        """Sum up; tensors that it made and that nobody holds any more were its own affair."""
        left = sum(size for storage, size in self.made.values() if not storage.expired())
        return Work(self.flops, self.by_formula,
                    sum(part.bytes() for part in self.read.values()),
                    left + sum(part.bytes() for part in self.changed.values()))


class _Touched:
    """Parts of one storage; what is touched twice counts once."""

    def __init__(self, kept: Any, size: int):
        self._kept, self._size = kept, size  # held, so that its key is not given to another
        self._views: set[tuple] = set()
        self._bytes = 0.0

    def view(self, key: tuple, size: float) -> None:
        """Touch a part; a view that was touched before adds nothing."""
        if key not in self._views:
            self._views.add(key)
            self._bytes += size

    def gathered(self, size: float) -> None:
        """Touch as many bytes in unknown places."""
        self._bytes += size

    def bytes(self) -> float:
        """Give how many bytes were touched, at most all."""
        return min(self._bytes, self._size)


class WorkCounter:
    """Takes the place of a `StageClock`; counts while it is entered as a context."""

    def __init__(self):
        self._open: list[tuple[str, _Run]] = [('', _Run())]
        self._work: dict[str, Work] = {}
        self._contexts = ExitStack()

    def __enter__(self) -> 'WorkCounter':
        """Begin to watch."""
        self._contexts.enter_context(listening(self._note))
        self._contexts.enter_context(_Watch(self.ran))
        return self

    def __exit__(self, *error: Any) -> None:
        """Look away."""
        self._contexts.close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs inside for a stage, less what its inner stages do."""
        outer = self._open[-1][0]
        self._open.append((f'{outer}/{name}' if outer else name, _Run()))
        try:
            yield
        finally:
            path, run = self._open.pop()
            self._work[path] = self._work.get(path, Work()) + run.work()

    def take(self) -> dict[str, Work]:
        """Give what each stage did by itself since the last call."""
        work, self._work = self._work, {}
        return work

    def ran(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Count an operation of torch for the stage that is open."""
        run = self._open[-1][1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            kind = _kind(tensors)
            run.flops[kind] = run.flops.get(kind, 0.0) + formula(*args, **kwargs, out_val=result)
        if not _is_view(func):
            self._touch(run, func, args, kwargs, tensors, result)

    def _touch(self, run: _Run, func: Any, args: tuple, kwargs: dict, tensors: list[Tensor],
               result: Any) -> None:
        changed = {id(tensor) for tensor in _changed(func, args, kwargs)}
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        given = sum(tensor.numel() * tensor.element_size() for tensor in results)
        keys = set()
        for place, tensor in enumerate(tensors):
            key = tensor.untyped_storage()._cdata
            keys.add(key)
            if key in run.made:
                continue
            if id(tensor) in changed:
                _part(run.changed, tensor).view(_view_key(tensor), _bytes(tensor))
            elif place == 0 and func._overloadpacket in _GATHERS:
                _part(run.read, tensor).gathered(min(given, _bytes(tensor)))
            else:
                _part(run.read, tensor).view(_view_key(tensor), _bytes(tensor))
        for tensor in results:
            storage = tensor.untyped_storage()
            if storage._cdata not in keys and storage._cdata not in run.read:
                run.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()

    def _note(self, name: str, flops: float, reads: Sequence[tuple[Any, float]]) -> None:
        run = self._open[-1][1]
        run.flops['float32'] = run.flops.get('float32', 0.0) + flops
        run.by_formula += flops
        for what, size in reads:
            key = what.untyped_storage()._cdata if isinstance(what, Tensor) else id(what)
            if key not in run.made:
                _part(run.read, what).gathered(size)


class _Watch(TorchDispatchMode):
    """Tells of every operation of torch, taken apart into those that compute."""

    def __init__(self, ran: Callable[[Any, tuple, dict, Any], None]):
        super().__init__()
        self._ran = ran

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None,
    ) -> Any:
        """Run an operation and tell of it."""
        kwargs = kwargs or {}
        if func._overloadpacket not in _FORMULAS and _is_composite(func):
            with self:  # in inference mode some operations arrive before they are taken apart
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._ran(func, args, kwargs, result)
        return result


def _part(parts: dict[int, _Touched], what: Tensor | np.ndarray) -> _Touched:
    if isinstance(what, Tensor):
        storage = what.untyped_storage()
        return parts.setdefault(storage._cdata, _Touched(storage, storage.nbytes()))
    return parts.setdefault(id(what), _Touched(what, what.nbytes))


def _view_key(tensor: Tensor) -> tuple:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _bytes(tensor: Tensor) -> int:
    """Give the bytes that a tensor has in memory, those of an expanded one once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()


def _kind(tensors: Sequence[Tensor]) -> str:
    """Name the type of the numbers that an operation multiplies."""
    kinds = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return str(kinds[0]).removeprefix('torch.') if kinds else 'float32'


def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), 'CompositeImplicitAutograd')


def _is_view(func: Any) -> bool:
    """Tell whether an operation only looks at memory in another way."""
    results = func._schema.returns
    return bool(results) and all(
        result.alias_info is not None and not result.alias_info.is_write for result in results)


def _changed(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """List the tensors that an operation writes into."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _attention_on_cpu(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


_FORMULAS = {packet: formula for packet, formula in flop_registry.items()
             if isinstance(packet, torch._ops.OpOverloadPacket)}
_FORMULAS.setdefault(aten._scaled_dot_product_flash_attention_for_cpu, _attention_on_cpu)
