"""Measures what the number of reference views costs: loading, memory, time an image.

    python tools/measure_scale.py --map MAP --views 100 1000 10000 --markdown docs/scale.md

The maps are made of the one given. Its reference views are repeated on a grid, a place each, with
poses and points moved; features are copied. Descriptors of another place are those of the map with
their words exchanged at random, and all have a little noise. Sizes and files are thus those of a
real map; that places are easily told apart is not. The images are rendered by the field near
reference views of the first place, and localized by retrieval without further rounds, each twice:
with views that are used for the first time, and again. Every map is measured in a process of its
own, on one thread, and deleted before the next is written.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
import json
import math
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.evaluation.pictures import draw_scale
from nerfmatch_ros.files import write_text
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import perturb, pose_distance
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.references import References
from nerfmatch_ros.retrieval import RetrievalIndex
from nerfmatch_ros.scene_map import FILES, SceneMap
from nerfmatch_ros.stage_clock import StageClock
import numpy as np
from rich.console import Console
from rich.table import Table
import torch
from torch import Tensor
import torch.nn.functional as F

MOST_BYTES = 6 << 30  # of one map, on disk
NOISE = 0.02  # of a number of a descriptor
STAGES = ('retrieval', 'reference', 'match')  # 'match' with its fine stage
COLUMNS = {
    'views': 'views', 'disk_mb': 'disk MB', 'load_s': 'load s', 'load_again_s': 'again s',
    'map_mb': 'map MB', 'views_mb': 'views MB', 'mapped_mb': 'mapped MB',
    'retrieval_ms': 'retrieval', 'reference_first_ms': 'views, first', 'reference_ms': 'again',
    'match_ms': 'match', 'total_first_ms': 'image, first', 'total_ms': 'again', 'found': 'found'}


class CpuClock(StageClock):
    """Times stages in seconds of the processor, which other programs do not lengthen."""

    def _now(self) -> float:
        return time.process_time()


@dataclass(frozen=True)
class MovedView:
    """A reference view of a map, at another place."""

    references: References
    number: int
    offset: Tensor  # (3,) metres

    @property
    def points(self) -> Tensor:
        """Points (N, 3), map frame, metres."""
        return self.references.view(self.number)[0] + self.offset

    @property
    def features(self) -> Tensor | None:
        """Features or tokens, as those of the view."""
        return self.references.features_of(self.number)


def place_offset(place: int, places: int, extent: float) -> np.ndarray:
    """Where a place lies (3,), metres, on a square grid of all."""
    side = math.ceil(math.sqrt(places))
    return 1.2 * extent * np.array([place % side, place // side, 0.0])


def descriptors_of_places(descriptors: Tensor, count: int, seed: int = 0) -> Tensor:
    """Describe `count` views (count, V), of as many places as these views (K, V) make."""
    generator = torch.Generator().manual_seed(seed)
    made, words = [descriptors], descriptors.shape[1]
    while sum(map(len, made)) < count:
        made.append(descriptors[:, torch.randperm(words, generator=generator)])
    every = torch.cat(made)[:count]
    noise = NOISE * torch.randn(every.shape, generator=generator)
    return F.normalize((every + noise).clamp(min=0), dim=-1)


def enlarged(scene_map: SceneMap, count: int) -> SceneMap:
    """Repeat the reference views of a map until there are `count`."""
    old = scene_map.references
    own = len(old.names)
    numbers = [(k // own, k % own) for k in range(count)]
    places = numbers[-1][0] + 1
    offsets = [place_offset(place, places, max(scene_map.extent, 1.0)) for place in range(places)]
    poses = np.stack([old.map_from_camera[k] for _, k in numbers])
    poses[:, :3, 3] += np.stack([offsets[place] for place, _ in numbers])
    lengths = old.starts.diff()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64),
                        torch.stack([lengths[k] for _, k in numbers]).cumsum(0)])
    references = References(
        [f'{place}/{old.names[k]}' for place, k in numbers],
        [old.cameras[k] for _, k in numbers], poses,
        descriptors_of_places(old.descriptors, count), starts, holds=old.holds,
        stored=[MovedView(old, k, torch.from_numpy(offsets[place]).float())
                for place, k in numbers])
    return replace(scene_map, references=references, neighbours={})


def rendered_images(
    scene_map: SceneMap, count: int, *, noise: bool = False,
) -> dict[str, np.ndarray]:
    """Render images near reference views: pictures, numbers of their cameras, poses.

    noise: fill them with random numbers instead.
    """
    localizer = Localizer(scene_map)
    last = len(scene_map.reference_names) - 1
    chosen = np.linspace(0, last, count + 2).round().astype(int)[1:-1]
    random = np.random.default_rng(0)
    spread = np.repeat((0.01 * scene_map.extent, 0.03), 3)
    pictures, cameras, poses = [], [], []
    for k in chosen:
        camera = scene_map.working_view(scene_map.cameras[k]).camera
        pose = perturb(torch.from_numpy(scene_map.reference_poses[k]),
                       torch.from_numpy(spread * random.standard_normal(6))).numpy()
        pictures.append(
            random.integers(0, 256, (camera.height, camera.width, 3), np.uint8) if noise
            else localizer.render(camera, pose))
        cameras.append(camera.to_dict())
        poses.append(pose)
    return {'pictures': np.stack(pictures), 'poses': np.stack(poses),
            'cameras': np.array(json.dumps(cameras))}


def resident_mb() -> tuple[float, float]:
    """Memory of this process: its own, and pages of files that it has looked at, MB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    values = dict(line.split(':', 1) for line in lines)
    return tuple(int(values[name].split()[0]) / 1024 for name in ('RssAnon', 'RssFile'))


def forget_file(path: Path) -> None:
    """Let the system drop a file from its memory, so that it is read from the disk again."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, images: Path, top_k: int) -> dict[str, Any]:
    """Load a map and localize images in it.

    The first loading is from the disk, by the clock; all other times are of the processor.
    """
    torch.set_num_threads(1)
    for name in FILES:
        forget_file(folder / name)
    start, before = time.perf_counter(), resident_mb()
    SceneMap.load(folder)
    seconds = time.perf_counter() - start
    start = time.process_time()
    localizer = Localizer.load(folder)
    again, loaded = time.process_time() - start, resident_mb()
    localizer.config = replace(localizer.config, start='retrieval', top_k=top_k, rounds=0)
    with np.load(images) as stored:
        cameras = [Camera.from_dict(camera) for camera in json.loads(str(stored['cameras']))]
        given = [PosedImage(f'rendered {k}', camera, None, pixels=picture)
                 for k, (camera, picture) in enumerate(zip(cameras, stored['pictures']))]
        truth = stored['poses']
    localizer.localize(replace(given[0], pixels=given[0].rgb()[::-1].copy()))  # warm
    cache = localizer.views.cache
    cache.clear()
    localizer.clock = CpuClock()
    rounds = [[timed(localizer, image) for image in given] for _ in range(2)]
    after = resident_mb()
    first, second = (_medians([times for times, _ in results]) for results in rounds)
    found = [estimate.map_from_camera is not None and pose_distance(
                torch.from_numpy(estimate.map_from_camera), torch.from_numpy(pose))[0]
             < 0.02 * localizer.scene_map.extent
             for (_, estimate), pose in zip(rounds[1], truth)]
    return {
        'views': len(localizer.scene_map.reference_names),
        'disk_mb': sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
        'load_s': seconds, 'load_again_s': again, 'map_mb': loaded[0] - before[0],
        'views_mb': cache.bytes / 1e6, 'mapped_mb': after[1] - loaded[1],
        'process_mb': sum(after),
        'retrieval_ms': second['retrieval'], 'reference_first_ms': first['reference'],
        'reference_ms': second['reference'], 'match_ms': second['match'],
        'total_first_ms': first['total'], 'total_ms': second['total'],
        'found': f'{sum(found)} of {len(found)}'}


def timed(localizer: Localizer, image: PosedImage) -> tuple[dict[str, float], Any]:
    """Localize an image: seconds by stage, and the estimate."""
    start = time.process_time()
    estimate = localizer.localize(image)
    total, stages = time.process_time() - start, localizer.clock.take()
    stages['match'] = stages.get('match', 0.0) + stages.pop('fine', 0.0)
    return {**{name: stages.get(name, 0.0) for name in STAGES}, 'total': total}, estimate


def _medians(times: Sequence[dict[str, float]]) -> dict[str, float]:
    """Milliseconds by stage."""
    return {name: 1000 * float(np.median([each[name] for each in times])) for name in times[0]}


def measure_retrieval(descriptors: Tensor, count: int) -> dict[str, float]:
    """Time the search among `count` views alone, compared one by one and in groups."""
    every = descriptors_of_places(descriptors, count)
    plain, started = RetrievalIndex(every[:1]), time.process_time()
    index = RetrievalIndex(every)
    made = time.process_time() - started
    plain._references = every
    asked = F.normalize(
        (every[torch.arange(0, count, count // 20)] + NOISE).clamp(min=0), dim=-1)
    result = {'views': count, 'prepare_s': made}
    for name, way in (('one_by_one_ms', plain), ('in_use_ms', index)):
        seconds = []
        way.nearest(asked[0], 10)
        for query in asked:
            start = time.process_time()
            way.nearest(query, 10)
            seconds.append(time.process_time() - start)
        result[name] = 1000 * float(np.median(seconds))
    result['grouped'] = not index.exact
    result['shared'] = float(np.mean([
        len(set(index.nearest(query, 10)[0].tolist()) & set(plain.nearest(query, 10)[0].tolist()))
        / 10 for query in asked]))
    return result


def in_own_process(arguments: Sequence[str], output: Path) -> dict[str, Any]:
    """Run this script again for one measurement, on one thread; give what it writes."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'NUMBA_NUM_THREADS': '1'}
    subprocess.run([sys.executable, __file__, *map(str, arguments), '--record', str(output)],
                   check=True, env=environment)
    return json.loads(output.read_text())


def measure_all(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make and measure one map after the other."""
    torch.set_num_threads(1)
    scene_map = SceneMap.load(options.map)
    each = (options.map / FILES[2]).stat().st_size / len(scene_map.reference_names)
    largest = each * max(options.views)
    if largest > min(MOST_BYTES, 0.9 * shutil.disk_usage(folder).free):
        raise SystemExit(f'{max(options.views)} views take {largest / 1e9:.1f} GB in {folder}; '
                         'give fewer, or another --folder')
    images = folder / 'images.npz'
    np.savez(images, **rendered_images(scene_map, options.images, noise=options.noise))
    rows = []
    for count in options.views:
        enlarged(scene_map, count).save(folder / 'map')
        rows.append(in_own_process(
            ['--map', folder / 'map', '--pictures', images, '--top-k', options.top_k],
            folder / 'row.json'))
        shutil.rmtree(folder / 'map')
    return {'map': options.name or options.map.name, 'top_k': options.top_k,
            'images': options.images, 'points_per_view': int(
                scene_map.references.starts[-1]) // len(scene_map.reference_names),
            'bytes_per_view': round(each), 'holds': scene_map.references.holds, 'rows': rows,
            'retrieval': [measure_retrieval(scene_map.references.descriptors, count)
                          for count in options.retrieval]}


def shown(value: Any) -> str:
    """Three digits of a number."""
    if not isinstance(value, float):
        return str(value)
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def tables(report: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Give title, head and rows of each table of a report."""
    made = [(f"{report['map']}: {report['points_per_view']} points and "
             f"{report['bytes_per_view'] / 1000:.0f} kB a view, {report['top_k']} views an image; "
             f"CPU ms of {report['images']} images, median",
             list(COLUMNS.values()),
             [[shown(row[name]) for name in COLUMNS] for row in report['rows']])]
    if report['retrieval']:
        made.append((
            'Retrieval alone', ['views', 'prepared in s', 'one by one ms', 'as used ms', 'way',
                                'of the ten nearest found'],
            [[shown(row['views']), shown(row['prepare_s']), shown(row['one_by_one_ms']),
              shown(row['in_use_ms']), 'groups' if row['grouped'] else 'one by one',
              f"{100 * row['shared']:.0f} %"] for row in report['retrieval']]))
    return made


def markdown(report: dict[str, Any], command: str, picture: str) -> str:
    """Write the section of a document."""
    lines = [f'`{command}`', '']
    for title, head, rows in tables(report):
        lines += [f'### {title}', '', '| ' + ' | '.join(head) + ' |',
                  '|' + ' ---: |' * len(head),
                  *('| ' + ' | '.join(row) + ' |' for row in rows), '']
    lines.append(f"![{report['map']}: load, memory and time an image]({picture})")
    return '\n'.join([*lines, ''])


def with_section(text: str, name: str, section: str) -> str:
    """Put a section between its marks in a text, or at its end."""
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    marked = f'{begin}\n{section}{end}\n'
    if begin not in text:
        return f'{text.rstrip()}\n\n{marked}'
    head, rest = text.split(begin, 1)
    return head + marked + rest.split(end + '\n', 1)[1]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--map', type=Path, required=True)
    parser.add_argument('--name', default='', help='of the map in the tables')
    parser.add_argument('--views', type=int, nargs='+', default=[100, 1000, 10000])
    parser.add_argument('--retrieval', type=int, nargs='*', default=[10000, 100000],
                        help='views among which retrieval alone is timed')
    parser.add_argument('--images', type=int, default=8)
    parser.add_argument('--noise', action='store_true',
                        help='images of noise, where the field takes minutes to render one')
    parser.add_argument('--top-k', type=int, default=5)
    parser.add_argument('--folder', type=Path, help='for the maps; else a temporary one')
    parser.add_argument('--output', type=Path, help='folder for scale.json and scale.png')
    parser.add_argument('--markdown', type=Path, help='file whose section is written anew')
    parser.add_argument('--record', type=Path, help=argparse.SUPPRESS)  # measure one map
    parser.add_argument('--pictures', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record is not None:
        options.record.write_text(json.dumps(
            measure(options.map, options.pictures, options.top_k)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = measure_all(options, Path(folder))
    console = Console(width=max(150, Console().width))
    for title, head, rows in tables(report):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if options.output is not None:
        write_text(options.output / 'scale.json', json.dumps(report, indent=1) + '\n')
        draw_scale(report, options.output / 'scale.png')
    if options.markdown is not None:
        picture = f"scale_{re.sub(r'[^a-z0-9]+', '_', report['map'].lower())}.png"
        draw_scale(report, options.markdown.with_name(picture))
        command = 'python tools/measure_scale.py --map MAP ' + ' '.join(
            f'--{name.replace("_", "-")} {" ".join(map(str, value))}' for name, value in (
                ('name', [f"'{report['map']}'"]), ('views', options.views),
                ('images', [options.images]), ('top_k', [options.top_k]),
                ('retrieval', options.retrieval))) + ' --noise' * options.noise
        text = options.markdown.read_text() if options.markdown.exists() else '# Scale\n'
        write_text(options.markdown, with_section(
            text, report['map'], markdown(report, command, picture)))


if __name__ == '__main__':
    main()
