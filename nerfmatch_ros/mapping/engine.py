"""The engine a training runs under: Lightning Fabric, on one process or on all that torchrun made.

    torchrun --nproc-per-node 8 --no-python nerfmatch build ...

Every process runs the same program. What a step draws depends on the seed and the step only, so
all processes know the whole batch and work on their own share of it; gradients are averaged.
"""

from collections.abc import Callable
from datetime import timedelta
import inspect
import os
from typing import TYPE_CHECKING

from nerfmatch_ros.errors import ConfigError
import torch
from torch import nn, Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PATIENCE = timedelta(days=7)  # that processes wait for the first one's own stages


def make_engine(device: str) -> 'Fabric':
    """Make the engine of this process, joined to the others where torchrun made several.

    device: 'cpu' or 'cuda:0'; several processes take one CUDA device each, whatever its number.
    Imported here because Lightning takes a second to load, which only a training should cost.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy
    kind, processes = torch.device(device).type, _setting('WORLD_SIZE', 1)
    if processes == 1:
        engine = Fabric(accelerator=kind, plugins=[LightningEnvironment()],
                        devices=1 if kind == 'cpu' else [torch.device(device).index or 0])
        engine.launch()
        return engine
    here = _setting('LOCAL_WORLD_SIZE', processes)
    for name in ('RANK', 'LOCAL_RANK'):
        _setting(name)
    if processes % here:
        raise ConfigError(f'{processes} processes do not divide into machines of {here}; '
                          'give torchrun the same --nproc-per-node on every machine')
    if kind == 'cuda' and here > torch.cuda.device_count():
        raise ConfigError(f'torchrun made {here} processes on a machine with '
                          f'{torch.cuda.device_count()} CUDA devices; give it '
                          f'--nproc-per-node {torch.cuda.device_count()}')
    # Buffers are changed alike everywhere, so sending them round would only cost time. Newer
    # releases of torch have another name for that.
    names = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    option = 'forward_sync_buffers' if 'forward_sync_buffers' in names else 'broadcast_buffers'
    strategy = DDPStrategy(process_group_backend='gloo' if kind == 'cpu' else 'nccl',
                           timeout=PATIENCE, **{option: False})
    engine = Fabric(accelerator=kind, devices=here, num_nodes=processes // here,
                    strategy=strategy, plugins=[TorchElasticEnvironment()])
    engine.launch()
    return engine


def _setting(name: str, default: int | None = None) -> int:
    """Read one of the numbers that torchrun puts into the environment."""
    text = os.environ.get(name, '' if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"the environment's {name} is '{text}', not a number as torchrun sets "
                          'it; start with torchrun or unset WORLD_SIZE')
    return int(text)


def from_first(engine: 'Fabric | None', value: float) -> float:
    """Give the first process's value to all; without an engine this process is alone."""
    if engine is None or engine.world_size == 1:
        return value
    number = torch.tensor(value, dtype=torch.float64, device=engine.device)
    torch.distributed.broadcast(number, 0)
    return number.item()


def total(engine: 'Fabric', values: Tensor) -> Tensor:
    """Sum a tensor over all processes; no gradient."""
    return engine.all_reduce(values.detach().clone(), reduce_op='sum')


def gathered(engine: 'Fabric', values: Tensor) -> Tensor:
    """Join tensors (n,) of all processes, each with some entries; no gradient.

    Where lengths differ, the last entry of a shorter one comes several times.
    """
    if engine.world_size == 1:
        return values
    length = torch.tensor(len(values), device=values.device)
    torch.distributed.all_reduce(length, torch.distributed.ReduceOp.MAX)
    padded = torch.cat([values, values[-1:].expand(int(length) - len(values))])
    parts = [torch.empty_like(padded) for _ in range(engine.world_size)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat(parts)


def once(engine: 'Fabric | None', work: Callable[[], None]) -> None:
    """Let the first process do something, such as writing a file; the others wait for it."""
    if engine is None or engine.is_global_zero:
        work()
    if engine is not None:
        engine.barrier()
