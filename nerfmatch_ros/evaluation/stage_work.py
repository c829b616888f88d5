"""What each stage of a way computes and moves, and the least time that this takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nerfmatch_ros.evaluation.machine_rates import MachineRates
from nerfmatch_ros.evaluation.stage_bench import OTHER, Query, run_once, TOTAL, Way
from nerfmatch_ros.evaluation.work_counter import Work, WorkCounter
import numpy as np


@dataclass(frozen=True)
class StageWork:
    """Work of a stage with its inner stages, in one localization."""

    flops: dict[str, float]  # by type of the numbers
    by_formula: float  # FLOPs of compiled loops, among them
    moved: float  # bytes
    floor: float  # seconds; CPU seconds on a CPU


def count_work(way: Way, queries: Sequence[Query], machine: MachineRates) -> dict[str, StageWork]:
    """Localize each image once with everything counted; give medians over the images by stage."""
    counted = []
    for query in queries:
        counter = WorkCounter()
        with counter:
            run_once(way, query, counter)
        counted.append(stage_work(counter.take(), machine))
    paths = {path for stages in counted for path in stages}
    return {path: _median([stages.get(path, _NONE) for stages in counted]) for path in paths}


def stage_work(own: Mapping[str, Work], machine: MachineRates) -> dict[str, StageWork]:
    """Add up the stages inside of each stage; own: work of each by itself, 'total/...'.

    The floor of a stage is the sum of those of its parts: one part's memory traffic does not hide
    behind another one's arithmetic. What 'total' does by itself is 'other'.
    """
    parts = {path.removeprefix(f'{TOTAL}/'): StageWork(
        work.flops, work.by_formula, work.read + work.written,
        machine.floor(work.flops, work.read + work.written)) for path, work in own.items()}
    result = {path: _sum([part for inner, part in parts.items()
                          if inner == path or inner.startswith(f'{path}/')])
              for path in parts if path != TOTAL}
    if TOTAL in parts:
        result[OTHER] = parts[TOTAL]
    result[TOTAL] = _sum(list(parts.values()))
    return result


_NONE = StageWork({}, 0.0, 0.0, 0.0)


def _sum(parts: Sequence[StageWork]) -> StageWork:
    return _combined(parts, sum)


def _median(parts: Sequence[StageWork]) -> StageWork:
    return _combined(parts, lambda values: float(np.median(list(values))))


def _combined(parts: Sequence[StageWork], combine) -> StageWork:
    kinds = sorted({kind for part in parts for kind in part.flops})
    return StageWork(
        {kind: combine(part.flops.get(kind, 0.0) for part in parts) for kind in kinds},
        combine(part.by_formula for part in parts), combine(part.moved for part in parts),
        combine(part.floor for part in parts))
