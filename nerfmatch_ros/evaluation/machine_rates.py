"""How fast this machine multiplies matrices and copies memory, measured as it is now."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
import platform
import time
from typing import Any

import torch

_SIDE_ON_CPU, _SIDE_ON_GPU = 1536, 8192  # of the matrices
_COPIED = 1 << 28  # bytes; no cache holds that much
_TURNS = 5


@dataclass(frozen=True)
class MachineRates:
    """Best of several measurements with the threads that torch has now."""

    device: str  # 'cpu' or 'cuda'
    name: str  # of the processor
    threads: int
    flops: dict[str, float]  # by type of the numbers, FLOP a second
    flops_per_cpu_second: dict[str, float]  # the same by CPU time of all threads; host's on a GPU
    copied: float  # bytes read and bytes written together, a second
    copied_per_cpu_second: float

    def floor(self, flops: dict[str, float], moved: float) -> float:
        """Give the seconds that work takes at least: CPU seconds, on a GPU seconds.

        flops: by type of the numbers; moved: bytes. Both can go on at the same time.
        """
        rates, copied = (self.flops_per_cpu_second, self.copied_per_cpu_second) \
            if self.device == 'cpu' else (self.flops, self.copied)
        computing = sum(count / rates.get(kind, rates['float32'])
                        for kind, count in flops.items())
        return max(computing, moved / copied)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, in GFLOP and GB."""
        return {
            'device': self.device, 'name': self.name, 'threads': self.threads,
            'gflop_per_second': {kind: rate / 1e9 for kind, rate in self.flops.items()},
            'gflop_per_cpu_second': {
                kind: rate / 1e9 for kind, rate in self.flops_per_cpu_second.items()},
            'copy_gbyte_per_second': self.copied / 1e9,
            'copy_gbyte_per_cpu_second': self.copied_per_cpu_second / 1e9}


def measure_rates(device: str = 'cpu', *, side: int | None = None, copied: int = _COPIED,
                  ) -> MachineRates:
    """Measure a device in a second or two.

    side: of the square matrices; copied: bytes of the buffer that is copied.
    """
    gpu = device.startswith('cuda')
    side = side or (_SIDE_ON_GPU if gpu else _SIDE_ON_CPU)
    flops, per_cpu = {}, {}
    for kind in (torch.float32, torch.bfloat16) + ((torch.float16,) if gpu else ()):
        first = torch.randn(side, side, device=device).to(kind)
        second = torch.randn(side, side, device=device).to(kind)
        wall, cpu = _best(lambda first=first, second=second: first @ second, gpu)
        name = str(kind).removeprefix('torch.')
        flops[name], per_cpu[name] = 2 * side ** 3 / wall, 2 * side ** 3 / cpu
    source = torch.zeros(copied // 4, device=device)
    target = torch.empty_like(source)
    wall, cpu = _best(lambda: target.copy_(source), gpu)
    return MachineRates(
        'cuda' if gpu else 'cpu', torch.cuda.get_device_name(device) if gpu else processor(),
        torch.get_num_threads(), flops, per_cpu, 2 * copied / wall, 2 * copied / cpu)


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _best(work: Callable[[], Any], gpu: bool) -> tuple[float, float]:
    """Give the shortest wall and CPU seconds of several turns, after a first one."""
    work()
    times = []
    for _ in range(_TURNS):
        if gpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if gpu:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in times), max(min(cpu for _, cpu in times), 1e-9)
