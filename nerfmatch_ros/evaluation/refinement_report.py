"""What a comparison of refiners prints and writes: tables, files, the section of a document."""

from collections.abc import Sequence
import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.evaluation import metrics
from nerfmatch_ros.evaluation.document import number, row, text_of
from nerfmatch_ros.evaluation.document import with_section as put_section
from nerfmatch_ros.evaluation.refinement_bench import (
    Attempt,
    bench_refinement,
    DEFAULT,
    RECALLS,
    RefinementBenchConfig,
    summarize,
)
from nerfmatch_ros.files import write_text
from rich.console import Console
from rich.table import Table

HEAD = """\
# What refinement gains

`nerfmatch bench refine --map MAP --images DIR --markdown FILE` writes the section of its map here
and leaves the others as they are.

A start is a pose to refine from: `retrieval` is the pose of the most similar reference view,
`match` the first pose of the fast path, `2cm_0.5deg` the true pose moved by 2 cm and turned by
half a degree in random directions. There the truth makes the start and nothing else: no refiner
sees it. A refiner is a schedule of refinement steps: `none` is the start itself, `default` the
schedule of the map. All refine the same images from the same starts. A refused image, one that has
no pose in the end, has infinite error in every median and share; `-` is an infinite median, or a
time or ratio that does not exist. Times are of the refinement alone, at `none` of finding the
start.
"""
COLUMNS = ('median cm', 'median deg', 'p90 cm', *RECALLS, 'refused', 'ms')


def report_refinement(
    localizer: Any, images: Sequence[PosedImage], config: RefinementBenchConfig, *,
    output: Path | None = None, markdown: Path | None = None, name: str = '',
) -> dict:
    """Compare refiners, write what is asked for, give the report; name: of the map's section."""
    if markdown is not None:  # before the long work
        with_section(text_of(markdown), name, '')
    attempts = bench_refinement(localizer, images, config)
    report = summarize(attempts, localizer.scene_map.extent, map_sha256=localizer.map_sha256,
                       default=localizer.config.refine)
    if output is not None:
        write_results(attempts, report, output)
    if markdown is not None:
        text = with_section(text_of(markdown), name, section(report, name))
        write_text(Path(markdown), text)
    return report


def cells(figures: dict) -> tuple[str, ...]:
    """Write the figures of one start and refiner in the order of COLUMNS."""
    return (
        *medians(figures), number(figures['p90_translation_m'], 100),
        *(f'{figures["recall"][name]:.2f}' for name in RECALLS), f'{figures["refused"]:.2f}',
        number(figures['median_seconds'], 1000))


def medians(figures: dict) -> tuple[str, str]:
    """Write the median errors in centimetres and degrees."""
    return number(figures['median_translation_m'], 100), number(figures['median_rotation_deg'])


def closest(by_refiner: dict) -> str | None:
    """Name the refiner with the smallest median distance; None where no median is finite."""
    finite = {name: figures['median_translation_m'] for name, figures in by_refiner.items()
              if figures['median_translation_m'] is not None}
    return min(finite, key=finite.get) if finite else None


def title(report: dict) -> str:
    """Say what was compared, in one line."""
    schedule = ', '.join(report['default_schedule']) or 'nothing'
    return (f'{report["queries"]} images, extent {report["map_extent_m"]:.3g} m, '
            f'default: {schedule}')


def print_refinement(report: dict) -> None:
    """Print a row for each start and refiner, the closest of each start in bold."""
    table = Table(title=title(report), title_justify='left')
    for name in ('start', 'refiner'):
        table.add_column(name)
    for name in (*COLUMNS, 'gain'):
        table.add_column(name, justify='right')
    for start, by_refiner in report['results'].items():
        best = closest(by_refiner)
        for k, (refiner, figures) in enumerate(by_refiner.items()):
            gain = _gain(report, start) if refiner == DEFAULT else ''
            table.add_row(start if k == 0 else '', refiner, *cells(figures), gain,
                          style='bold' if refiner == best else None,
                          end_section=k == len(by_refiner) - 1)
    console = Console()
    console.print(table)
    console.print("The true pose, moved, is a start and nothing else. Gain: the median of 'none' "
                  "over that of 'default', distance / angle. -: infinite, or does not exist.")


def section(report: dict, name: str) -> str:
    """Write the section of a map: medians of all refiners at a glance, then every figure."""
    refiners = list(next(iter(report['results'].values())))
    sha256 = f'; map {report["map_sha256"][:12]}' if report['map_sha256'] else ''
    lines = [f'## {name}', '', f'{title(report)}{sha256}.', '',
             'Median cm / degrees; gain: the median of `none` over that of `default`.', '',
             row('start', *refiners, 'gain'), row(*['---'] * (len(refiners) + 2))]
    for start, by_refiner in report['results'].items():
        best = closest(by_refiner)
        pairs = [' / '.join(medians(by_refiner[refiner])) for refiner in refiners]
        pairs = [f'**{pair}**' if refiner == best else pair
                 for refiner, pair in zip(refiners, pairs)]
        lines.append(row(start, *pairs, _gain(report, start)))
    lines += ['', '<details><summary>All figures</summary>', '',
              row('start', 'refiner', *COLUMNS), row(*['---'] * (len(COLUMNS) + 2))]
    lines += [row(start, refiner, *cells(figures))
              for start, by_refiner in report['results'].items()
              for refiner, figures in by_refiner.items()]
    return '\n'.join([*lines, '', '</details>', ''])


def with_section(document: str, name: str, text: str) -> str:
    """Put a section between the two marks of its map's name; at the end where there are none."""
    return put_section(document, f'bench refine: {name}', text, head=HEAD)


def write_results(attempts: Sequence[Attempt], report: dict, output: Path) -> None:
    """Write refinement.csv, refinement.png and refinement.json into the folder."""
    # matplotlib is slow to import and the figures stand without it.
    from nerfmatch_ros.evaluation.pictures import draw_refinement
    output = Path(output)
    write_text(output / 'refinement.csv', format_attempts(attempts))
    draw_refinement(report, output / 'refinement.png')
    # Last, so that a report stands for a complete set of files.
    write_text(output / 'refinement.json', json.dumps(report, indent=2, allow_nan=False) + '\n')


def format_attempts(attempts: Sequence[Attempt]) -> str:
    """Give the text of refinement.csv, one line an attempt; who has no pose has no errors."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['name', 'start', 'refiner', 'localized', 'reason', 'translation_error_m',
                     'rotation_error_deg', 'seconds'])
    errors = metrics.pose_errors([attempt.map_from_camera for attempt in attempts],
                                 [attempt.image.map_from_camera for attempt in attempts])
    for attempt, *values in zip(attempts, errors.translation, errors.rotation):
        writer.writerow([
            attempt.image.name, attempt.start, attempt.refiner,
            int(attempt.map_from_camera is not None), attempt.reason,
            *(f'{value:.6g}' if math.isfinite(value) else ''
              for value in (*values, attempt.seconds))])
    return text.getvalue()


def _gain(report: dict, start: str) -> str:
    gain = report['gain'].get(start)
    return '' if gain is None else f'{number(gain["translation"])} / {number(gain["rotation"])}'
