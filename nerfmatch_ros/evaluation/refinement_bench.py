"""
Compares refiners from the same starts on the same images: how close each comes, how long it takes.

A start is a pose to refine from: the nearest reference view ('retrieval'), the first pose of the
fast path ('match'), or the true pose moved by a known amount. There the truth makes the start and
nothing else: a localizer gets pixels, camera and start. A refiner is a schedule of refinement
steps, joined by '+'. Whoever has no pose has infinite error, in every median and every share.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
import math
import time
from typing import Any
import zlib

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.evaluation import metrics
from nerfmatch_ros.evaluation.evaluate import json_ready
from nerfmatch_ros.geometry.pose import perturb
from nerfmatch_ros.localization.schedule import STEPS
import numpy as np
import torch

RETRIEVAL, MATCH = 'retrieval', 'match'  # starts that the map supplies
NONE, DEFAULT = 'none', 'default'  # refiners: the start itself; the schedule of the map
REFINERS = (NONE, *STEPS, DEFAULT)
USUAL_EXTENT = 3.5  # metres, of a map whose perturbations are those of the configuration
HAIR = 1 - 1e-6
RECALLS = ('5cm_5deg', '1pct_extent_1deg')


@dataclass(frozen=True)
class RefinementBenchConfig:
    """Which refiners start from where."""

    refiners: tuple[str, ...] = REFINERS
    # (metres, degrees): lengths, in random directions, by which the true pose is moved
    perturbations: tuple[tuple[float, float], ...] = (
        (0.02, 0.5), (0.05, 1.0), (0.10, 2.5), (0.30, 8.0))
    scale_with_extent: bool = False  # times the map's extent / USUAL_EXTENT; angles stay
    seed: int = 0  # of the directions

    def __post_init__(self):
        """Refuse what compares nothing."""
        if not self.refiners or len(set(self.refiners)) < len(self.refiners):
            raise ConfigError(f'refiners are {self.refiners}; name each once, at least one')
        for name in self.refiners:
            if not all(name.split('+')):
                raise ConfigError(f"refiner '{name}' names no step at one end of a '+'; "
                                  "write it like 'match+photometric'")
        for metres, degrees in self.perturbations:
            if not (0 <= metres < math.inf and 0 <= degrees < 180):
                raise ConfigError(f'a perturbation of {metres:g} m and {degrees:g} degrees cannot '
                                  'be made; give metres from 0 and degrees from 0 to 180')


@dataclass(frozen=True, eq=False)
class Attempt:
    """What one refiner made of one start of one image."""

    image: PosedImage  # with its true pose
    start: str
    refiner: str
    map_from_camera: np.ndarray | None  # (4, 4) metres, or None
    reason: str  # why there is no pose
    seconds: float  # of the refiner; of 'none': of finding the start; nan where nothing was done


@dataclass(frozen=True, eq=False)
class Start:
    """A pose to refine from, or none where the map found none."""

    map_from_camera: np.ndarray | None  # (4, 4) metres
    reason: str = ''
    seconds: float = math.nan  # nan: not found but given


def perturbations(config: RefinementBenchConfig, extent: float) -> dict[str, tuple[float, float]]:
    """Give the perturbations (metres, degrees) of a map by name; extent: of the map, metres."""
    factor = 1.0
    if config.scale_with_extent:
        if not 0 < extent < math.inf:
            raise ConfigError(f'the extent of the map is {extent:g} m, so nothing can be scaled '
                              'with it; leave scale_with_extent out')
        factor = extent / USUAL_EXTENT
    scaled = [(metres * factor, degrees) for metres, degrees in config.perturbations]
    return {f'{100 * metres:.3g}cm_{degrees:g}deg': (metres, degrees)
            for metres, degrees in scaled}


def perturbed(
    map_from_camera: np.ndarray, metres: float, degrees: float, seed: Sequence[int],
) -> np.ndarray:
    """
    Move a pose (4, 4) that far and turn it that much, in random directions.

    A hair less of both, so that rounding puts nothing beyond a limit of just that size.
    """
    directions = np.random.default_rng(seed).standard_normal((2, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    delta = HAIR * np.concatenate((
        metres * directions[0], math.radians(degrees) * directions[1]))
    return perturb(torch.from_numpy(map_from_camera), torch.from_numpy(delta)).numpy()


def evenly_chosen(images: Sequence[PosedImage], limit: int | None) -> list[PosedImage]:
    """Give at most `limit` images, spread evenly over all of them, first and last included."""
    if limit is None or limit >= len(images):
        return list(images)
    if limit < 1:
        raise ConfigError(f'a limit of {limit} leaves no image; give a positive number')
    return [images[k] for k in np.linspace(0, len(images) - 1, limit).round().astype(int)]


def bench_refinement(
    localizer: Any, images: Sequence[PosedImage], config: RefinementBenchConfig | None = None,
) -> list[Attempt]:
    """
    Refine every start of every image in every way.

    localizer: a `Localizer`; its `config.refine` is what 'default' stands for.
    images: with `map_from_camera`; an image has the same starts whatever others are there.
    """
    from rich.console import Console
    from rich.progress import track
    config = config or RefinementBenchConfig()
    if not images:
        raise DataError('there are no images to refine')
    unknown = [image.name for image in images if image.map_from_camera is None]
    if unknown:
        raise DataError(f'{len(unknown)} of {len(images)} images have no true pose, the first is '
                        f'{unknown[0]}; choose another split')
    moves = perturbations(config, localizer.scene_map.extent)
    schedules = schedules_of(config.refiners, localizer.config.refine)
    attempts = []
    for image in track(images, description='refining', transient=True,
                       console=Console(stderr=True)):
        query = replace(
            image, pixels=image.rgb(), map_from_camera=None, depth=None, depth_path=None)
        starts = _found_starts(localizer, query)
        for name, (metres, degrees) in moves.items():
            # Of the perturbation and the name, so that a start depends on no other image.
            seed = (config.seed, zlib.crc32(f'{degrees:g} {image.name}'.encode()))
            starts[name] = Start(perturbed(image.map_from_camera, metres, degrees, seed))
        for name, start in starts.items():
            attempts += _refined(localizer, image, query, name, start, schedules)
    return attempts


def schedules_of(
    refiners: Sequence[str], default: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    """Give the steps of each refiner; default: those of the map."""
    known = {NONE: (), DEFAULT: tuple(default)}
    return {name: known.get(name, tuple(name.split('+'))) for name in refiners}


def summarize(
    attempts: Sequence[Attempt], extent: float, *, map_sha256: str = '',
    default: Sequence[str] = (),
) -> dict:
    """
    Give the report: under 'results' the figures of each start and refiner.

    extent: diagonal of the map cameras' bounding box, metres; default: the map's schedule.
    'gain' is the median error of 'none' over that of 'default': above 1 the default is closer.
    """
    groups: dict[str, dict[str, list[Attempt]]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.start, {}).setdefault(attempt.refiner, []).append(attempt)
    results = {start: {refiner: _figures(group, extent) for refiner, group in by_refiner.items()}
               for start, by_refiner in groups.items()}
    return json_ready({
        'queries': len({attempt.image.name for attempt in attempts}),
        'map_sha256': map_sha256,
        'map_extent_m': extent,
        'default_schedule': list(default),
        'results': results,
        'gain': {start: gain(by_refiner) for start, by_refiner in results.items()
                 if {NONE, DEFAULT} <= set(by_refiner)},
    })


def gain(by_refiner: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Divide the medians of 'none' by those of 'default'; nan where both are infinite or zero."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return {kind: float(np.divide(by_refiner[NONE][key], by_refiner[DEFAULT][key]))
                for kind, key in (('translation', 'median_translation_m'),
                                  ('rotation', 'median_rotation_deg'))}


def _figures(group: Sequence[Attempt], extent: float) -> dict:
    errors = metrics.pose_errors([attempt.map_from_camera for attempt in group],
                                 [attempt.image.map_from_camera for attempt in group])
    recall = metrics.recalls(errors, extent)
    seconds = np.array([attempt.seconds for attempt in group])
    return {
        'median_translation_m': metrics.median(errors.translation),
        'median_rotation_deg': metrics.median(errors.rotation),
        'p90_translation_m': metrics.percentile(errors.translation, 90),
        'recall': {name: recall[name] for name in RECALLS},
        'refused': sum(attempt.map_from_camera is None for attempt in group) / len(group),
        'median_seconds': metrics.median(seconds[np.isfinite(seconds)]),
    }


def _found_starts(localizer: Any, query: PosedImage) -> dict[str, Start]:
    """Let the map find where to start, from pixels and camera alone."""
    begin = time.perf_counter()
    nearest = localizer.similar_views(query, 1)[0]
    retrieval = Start(nearest, seconds=time.perf_counter() - begin)
    with _without_rounds(localizer):
        begin = time.perf_counter()
        estimate = localizer.localize(query)
        seconds = time.perf_counter() - begin
    return {RETRIEVAL: retrieval,
            MATCH: Start(estimate.map_from_camera, estimate.reason, seconds)}


@contextmanager
def _without_rounds(localizer: Any) -> Iterator[None]:
    kept = localizer.config
    localizer.config = replace(kept, rounds=0)
    try:
        yield
    finally:
        localizer.config = kept


def _refined(
    localizer: Any, image: PosedImage, query: PosedImage, name: str, start: Start,
    schedules: Mapping[str, tuple[str, ...]],
) -> list[Attempt]:
    """Refine one start in every way; equal schedules run once, as the same call is repeatable."""
    done: dict[tuple[str, ...], Start] = {(): start}
    for steps in schedules.values():
        if steps in done:
            continue
        if start.map_from_camera is None:
            done[steps] = Start(None, start.reason)
            continue
        begin = time.perf_counter()
        estimate = localizer.refine(query, start.map_from_camera, schedule=steps)
        done[steps] = Start(estimate.map_from_camera, estimate.reason,
                            time.perf_counter() - begin)
    return [Attempt(image, name, refiner, done[steps].map_from_camera, done[steps].reason,
                    done[steps].seconds) for refiner, steps in schedules.items()]
