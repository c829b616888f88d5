"""The localizers of one map on the same photographs, each from nothing: `bench localizers`.

What is measured is the first pose that each gives, without a prior and without refinement, as a
robot that is lost asks for it; photographs of other places say whether it knows that it is wrong.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import json
from pathlib import Path
import time

from nerfmatch_ros.config import from_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.evaluation.document import number, row, text_of, with_section
from nerfmatch_ros.evaluation.evaluate import json_ready
from nerfmatch_ros.evaluation.metrics import median, percentile, pose_errors, recall
from nerfmatch_ros.files import write_text
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.localization.make_localizer import make_localizer
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
from rich.console import Console
from rich.table import Table

HEAD = """\
# Localizers

The first pose that each localizer of a map gives, without a prior and without refinement, as a
robot that is lost asks for it. `sure elsewhere` is the share of photographs of other places that
got a pose which counts: one that the map does not call more likely wrong than right. CPU time is
that of a photograph in memory until its pose. `nerfmatch bench localizers --map MAP --images DIR
--elsewhere DIR --markdown FILE` writes the section of its map here and leaves the others as they
are.
"""
COLUMNS = ('localized', 'median cm', 'median deg', '90 % cm', 'within 5 cm, 5 deg', 'CPU ms',
           '95 % CPU ms', 'sure elsewhere')
TRUSTED = 0.5  # probability from which on a pose counts
_WARM = 2  # images before the clock counts


@dataclass(frozen=True)
class Way:
    """What a row of the table localizes with."""

    localizer: str
    start: str  # where it searches, once it has to
    needs_geometry: bool = True


WAYS = {
    'nerfmatch, whole map': Way('nerfmatch', 'global', needs_geometry=False),
    'nerfmatch, retrieval': Way('nerfmatch', 'retrieval', needs_geometry=False),
    'hybrid, else whole map': Way('hybrid', 'global'),
    'hybrid, else retrieval': Way('hybrid', 'retrieval'),
    'scene_geometry': Way('scene_geometry', 'global'),
}


def bench_localizers(
    scene_map: SceneMap, queries: Sequence[PosedImage],
    elsewhere: Mapping[str, Sequence[PosedImage]] | None = None, *,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Localize photographs in every way that the map serves; gives the report.

    queries: with true poses, which no localizer sees; elsewhere: by name, photographs of places
    that are not in the map.
    """
    if not queries or any(image.map_from_camera is None for image in queries):
        raise DataError('localizers are compared on photographs with known poses; give some')
    own = from_dict(LocalizerConfig, scene_map.localization, 'map.yaml: localization')
    report = {'map_sha256': scene_map.sha256, 'images': len(queries), 'elsewhere': {
        name: len(images) for name, images in (elsewhere or {}).items()}, 'results': {}}
    for name, way in WAYS.items():
        if way.needs_geometry and scene_map.scene_geometry is None:
            continue
        say(name)
        localizer = make_localizer(
            scene_map, way.localizer, replace(own, start=way.start, rounds=0))
        report['results'][name] = json_ready({
            **_measured(localizer, queries), 'sure_elsewhere': {
                place: float(np.mean([is_sure(estimate) for estimate in _localized(
                    localizer, images)[0]])) for place, images in (elsewhere or {}).items()}})
    return report


def told_apart(folders: Sequence[Path]) -> dict[str, Path]:
    """Name folders by their last part, or as many as tell them apart; each folder once."""
    folders = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    named = {}
    for folder in folders:
        ends = (folder.parts[-count:] for count in range(1, len(folder.parts) + 1))
        own = next(end for end in ends
                   if sum(other.parts[-len(end):] == end for other in folders) == 1)
        named['/'.join(own)] = folder
    return named


def is_sure(estimate: PoseEstimate) -> bool:
    """Say whether a pose counts; one without a probability does."""
    return estimate.map_from_camera is not None and not estimate.probability < TRUSTED


def _measured(localizer: Localizer, queries: Sequence[PosedImage]) -> dict:
    estimates, times = _localized(localizer, queries)
    errors = pose_errors([estimate.map_from_camera for estimate in estimates],
                         [image.map_from_camera for image in queries])
    times = times[_WARM:] or times
    return {
        'localized': float(np.isfinite(errors.translation).mean()),
        'median_m': median(errors.translation), 'median_deg': median(errors.rotation),
        'p90_m': percentile(errors.translation, 90), 'within_5cm_5deg': recall(errors, 0.05, 5.0),
        'cpu_ms': float(np.median(times)), 'cpu_ms_p95': float(np.percentile(times, 95)),
        'sources': dict(Counter(
            estimate.source.partition(':')[0] for estimate in estimates).most_common())}


def _localized(
    localizer: Localizer, images: Sequence[PosedImage],
) -> tuple[list[PoseEstimate], list[float]]:
    """Give the estimates, and the milliseconds of CPU time that each took."""
    estimates, times = [], []
    for image in images:
        query = replace(image, pixels=image.rgb(), path=None, map_from_camera=None, depth=None,
                        depth_path=None)
        began = time.process_time()
        estimates.append(localizer.localize(query))
        times.append(1000 * (time.process_time() - began))
    return estimates, times


def cells(result: Mapping) -> tuple[str, ...]:
    """Write the figures of one way in the order of COLUMNS."""
    sure = ', '.join(f'{share:.0%}' for share in result['sure_elsewhere'].values())
    return (f'{result["localized"]:.0%}', number(result['median_m'], 100),
            number(result['median_deg']), number(result['p90_m'], 100),
            f'{result["within_5cm_5deg"]:.0%}', number(result['cpu_ms']),
            number(result['cpu_ms_p95']), sure or '-')


def print_localizers(report: Mapping) -> None:
    """Print a row for each way."""
    table = Table(title=_title(report), title_justify='left')
    table.add_column('localizer')
    for name in COLUMNS:
        table.add_column(name, justify='right')
    for name, result in report['results'].items():
        table.add_row(name, *cells(result))
    Console().print(table)


def write_report(
    report: Mapping, *, output: Path | None, markdown: Path | None, name: str, command: str,
) -> None:
    """Write `localizers.json` into a folder, and the section of a map in a document."""
    if output is not None:
        write_text(output / 'localizers.json', json.dumps(report, indent=1) + '\n')
    if markdown is None:
        return
    lines = [f'## {name}', '', f'{_title(report)}: `{command}`', '',
             row('localizer', *COLUMNS), row('---', *['---:'] * len(COLUMNS))]
    lines += [row(way, *cells(result)) for way, result in report['results'].items()]
    write_text(markdown, with_section(
        text_of(markdown), name, '\n' + '\n'.join(lines) + '\n\n', head=HEAD))


def _title(report: Mapping) -> str:
    others = ', '.join(f'{count} of {place}' for place, count in report['elsewhere'].items())
    return f'{report["images"]} images' + (f'; elsewhere {others}' if others else '')
