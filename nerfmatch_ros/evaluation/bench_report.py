"""What a measurement of the stages prints and writes: a table, JSON, the section of a document."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.evaluation.document import number, row, text_of, with_section
from nerfmatch_ros.evaluation.evaluate import json_ready
from nerfmatch_ros.evaluation.stage_bench import (
    accuracy,
    medians,
    OURS,
    ratios,
    Run,
    sources,
    TOTAL,
)
from nerfmatch_ros.evaluation.stage_work import StageWork
from nerfmatch_ros.files import write_text
from rich.console import Console
from rich.table import Table

COLUMNS = ('runs', 'wall ms', 'CPU ms', 'GFLOP', 'MB', 'floor ms', 'ratio')
# Stages of libraries whose work nobody sees, decoders, resampling, the pose solver; and the rest
UNCOUNTED = ('decode', 'picture', 'pnp', 'other')
LEGEND = """\
Medians over images of the median over repeats, all ways in turns on the same images in one
process, from the file to the pose. CPU: of all threads. runs: how often a stage ran. GFLOP: matrix
products, convolutions and attention, and by formula the compiled loops of hash grid and splatting;
other arithmetic, decoding, resampling and the pose solver are not counted. MB: what a stage reads
of what others made, and what it leaves. floor: the longer of GFLOP at the measured rate of matrix
products and MB at the measured rate of copying; ratio: time (CPU; on a GPU wall) over floor. Work
of the localizer is the median over the images, of the plain pipeline that of the first image.
-: nothing counted."""
HEAD = f"""\
# Performance

`nerfmatch bench --map MAP --images DIR --against straightforward --markdown FILE`, with `--track`
for tracked images, writes the section of its map and mode here and leaves the others as they are.

{LEGEND}

A tracked image has a prior; its section says which. `straightforward` is the paper's plain
pipeline on the same map, in single precision: encode the image; render the most similar reference
views (or the prior) one after the other, 128 + 128 samples a ray, each through the whole field;
match with attention and both softmaxes written out; solve all matches; render at the estimate and
solve again until the pose rests.
"""


def stage_report(
    runs: Sequence[Run], *, mode: str, prior: str = '', config: Any = None, map_sha256: str = '',
    precision: str = '', work: Mapping[str, Mapping[str, StageWork]] | None = None,
    machine: Mapping[str, Any] | None = None,
) -> dict:
    """Give the figures of all ways.

    mode: 'global' or 'tracked'; prior: what tracked images start from, in words; precision: of the
    localizer's networks; work: for each way what each stage computes and moves; machine: what it
    was measured on.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.way, []).append(run)
    tables = {way: medians(group) for way, group in groups.items()}
    on_gpu = bool(machine) and machine['device'] != 'cpu'
    ways = {way: {
        'stages': {path: _figures(path, costs, (work or {}).get(way, {}).get(path), on_gpu)
                   for path, costs in tables[way].items()},
        'accuracy': accuracy(groups[way]), 'sources': sources(groups[way])} for way in groups}
    images = {run.image.name for run in runs}
    return json_ready({
        'mode': mode, 'prior': prior, 'images': len(images),
        'repeats': len(runs) // (len(images) * len(groups)), 'map_sha256': map_sha256,
        'precision': precision, 'machine': dict(machine or {}),
        'config': {} if config is None else to_dict(config),
        'ways': ways, 'times_longer': ratios(tables) if OURS in tables else {}})


def title(report: Mapping[str, Any]) -> str:
    """Say what was measured, in one line."""
    prior = f', prior: {report["prior"]}' if report['prior'] else ''
    networks = f'; localizer in {report["precision"]}' if report['precision'] else ''
    return (f'{report["mode"]}{prior}; {_counted(report["images"], "image")}, '
            f'{_counted(report["repeats"], "repeat")}{networks}')


def machine_line(machine: Mapping[str, Any]) -> str:
    """Name the machine and the measured rates that floors come from, in one line."""
    if machine['device'] == 'cpu':
        rates, unit = machine['gflop_per_cpu_second'], 'a CPU second'
        copied = machine['copy_gbyte_per_cpu_second']
    else:
        rates, unit = machine['gflop_per_second'], 'a second'
        copied = machine['copy_gbyte_per_second']
    return '; '.join([
        machine['name'], _counted(machine['threads'], 'thread'),
        *(f'{kind} {rate:.0f} GFLOP {unit}' for kind, rate in rates.items()),
        f'copying {copied:.1f} GB {unit}'])


def accuracy_line(way: str, figures: Mapping[str, Any]) -> str:
    """Write the median errors of a way, and what its images were matched with."""
    errors = figures['accuracy']
    lost = f', {errors["without_pose"]:.0%} without pose' if errors['without_pose'] else ''
    seen = ', '.join(f'{name} ({count})' for name, count in figures['sources'].items() if name)
    return (f'{way}: {number(errors["median_translation_m"], 100)} cm, '
            f'{number(errors["median_rotation_deg"])} deg{lost}'
            + f'; last matched with: {seen}' * bool(seen))


def ratio_line(way: str, times: Mapping[str, float]) -> str:
    """Write how many times longer a way takes."""
    return f'{way} takes {times["wall"]:.2f} x the wall time and {times["cpu"]:.2f} x the CPU time'


def print_report(report: Mapping[str, Any]) -> None:
    """Print a table for each way, the accuracy of each and the ratios of the totals."""
    console = Console()
    for way, figures in report['ways'].items():
        table = Table(title=f'{way}: {title(report)}', title_justify='left')
        table.add_column('stage', no_wrap=True)
        for name in COLUMNS:
            table.add_column(name, justify='right')
        for path, stage in figures['stages'].items():
            table.add_row(_indented(path, '  '), *_cells(stage),
                          style='bold' if path == TOTAL else None)
        console.print(table)
    for way, figures in report['ways'].items():
        console.print(accuracy_line(way, figures), highlight=False)
    for way, times in report['times_longer'].items():
        console.print(ratio_line(way, times), highlight=False)
    if report['machine']:
        console.print(machine_line(report['machine']), highlight=False)
    console.print(' '.join(LEGEND.split()), highlight=False)


def section(report: Mapping[str, Any], name: str, command: str = '') -> str:
    """Write the section of a document: what, on what, and every figure."""
    sha256 = f'; map {report["map_sha256"][:12]}' if report['map_sha256'] else ''
    lines = [f'### {name}, {report["mode"]}', '', f'{title(report)}{sha256}.', '']
    if command:
        lines += ['```', command, '```', '']
    if report['machine']:
        lines += [f'{machine_line(report["machine"])}.', '']
    lines += [f'- {accuracy_line(way, figures)}' for way, figures in report['ways'].items()
              if figures['accuracy'] is not None]
    lines += [f'- {ratio_line(way, times)}' for way, times in report['times_longer'].items()]
    for way, figures in report['ways'].items():
        lines += ['', row(way, *COLUMNS), row('---', *['---:'] * len(COLUMNS))]
        lines += [row(_indented(path, '&nbsp;&nbsp;'), *_cells(stage))
                  for path, stage in figures['stages'].items()]
    return '\n'.join([*lines, ''])


def write_report(
    report: Mapping[str, Any], *, output: Path | None = None, markdown: Path | None = None,
    name: str = '', command: str = '',
) -> None:
    """Write bench_<mode>.json into a folder, and the section of a map and mode in a document."""
    if markdown is not None:
        write_text(Path(markdown), with_section(
            text_of(markdown), mark(report['mode'], name), section(report, name, command),
            head=HEAD))
    if output is not None:
        write_text(Path(output) / f'bench_{report["mode"]}.json',
                   json.dumps(report, indent=2, allow_nan=False) + '\n')


def check_document(markdown: Path | None, mode: str, name: str) -> None:
    """Refuse a document that cannot take the section, before the long work."""
    if markdown is not None:
        with_section(text_of(markdown), mark(mode, name), '', head=HEAD)


def mark(mode: str, name: str) -> str:
    """Name the marks of a section."""
    return f'bench {mode}: {name}'


def _counted(count: int, what: str) -> str:
    return f'{count} {what}' + 's' * (count != 1)


def _figures(
    path: str, costs: Mapping[str, float], work: StageWork | None, on_gpu: bool,
) -> dict[str, Any]:
    wall, cpu = 1000 * costs['wall'], 1000 * costs['cpu']
    figures = {'wall_ms': wall, 'cpu_ms': cpu, 'runs': costs['runs'], 'gflop': None,
               'mbyte': None, 'floor_ms': None, 'ratio': None}
    if work is None or not work.floor or path.rpartition('/')[2] in UNCOUNTED:
        return figures
    return {**figures, 'gflop': sum(work.flops.values()) / 1e9,
            'gflop_by_type': {kind: count / 1e9 for kind, count in work.flops.items()},
            'gflop_by_formula': work.by_formula / 1e9, 'mbyte': work.moved / 1e6,
            'floor_ms': 1000 * work.floor, 'ratio': (wall if on_gpu else cpu) / 1000 / work.floor}


def _cells(stage: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(number(stage[name]) for name in (
        'runs', 'wall_ms', 'cpu_ms', 'gflop', 'mbyte', 'floor_ms', 'ratio'))


def _indented(path: str, by: str) -> str:
    outer, _, inner = path.rpartition('/')
    return by * (outer.count('/') + 1) + inner if outer else inner
