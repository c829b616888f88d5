"""
Scene geometry by loss, weights and backbone: `nerfmatch bench scene-geometry`.

The same photographs train each variant for the same number of steps or minutes; photographs that
none has seen measure it. The last row of the losses is what a build does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import json
from pathlib import Path
import time

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.evaluation.document import number, row, text_of, with_section
from nerfmatch_ros.evaluation.evaluate import json_ready
from nerfmatch_ros.evaluation.metrics import median, pose_errors, PoseErrors, recall
from nerfmatch_ros.files import write_text
from nerfmatch_ros.localization.scene_geometry_localizer import GeometryReader
from nerfmatch_ros.mapping.build_folder import describe_image, MARK, mark_of, mark_work_folder
from nerfmatch_ros.mapping.map_scene_geometry import GOING_ON_RATE
from nerfmatch_ros.mapping.train_scene_geometry import SceneGeometryTraining, train_scene_geometry
from nerfmatch_ros.scene_geometry import SceneGeometry
import numpy as np
from rich.console import Console
from rich.table import Table

HEAD = """\
# Scene geometry

One network says of each cell of a picture where it lies in the map and in the camera; the motion
between both is the pose. `nerfmatch bench scene-geometry --images DIR --output DIR --markdown
FILE` writes the section of its data set here and leaves the others as they are.
"""
COLUMNS = ('median cm', 'median deg', 'within 12 cm, 4 deg', 'parameters', 'ms an image', 'steps',
           'CPU s')
_GOAL = (0.12, 4.0)  # metres, degrees
_WARM = 2  # images before the clock counts
_CHECKPOINT, _RESULT = 'checkpoint', 'result.json'  # in the folder of a training
_REMEDY = 'give another --output, or delete the folder to train anew'


@dataclass(frozen=True)
class Variant:
    """What a row of the table does otherwise than the configuration."""

    losses: tuple[str, ...] | None = None  # that are on; None: as configured
    weighted: bool = True
    backbone: str = ''  # '': as configured

    def of(self, training: SceneGeometryTraining) -> SceneGeometryTraining:
        """Give the training of this variant."""
        losses = replace(training.losses, weighted=self.weighted)
        if self.losses is not None:
            losses = replace(losses, **{
                name: getattr(losses, name) if name in self.losses else 0.0
                for name in ('pose', 'consistency', 'reprojection')})
        network = replace(training.network, backbone=self.backbone or training.network.backbone)
        return replace(training, losses=losses, network=network)


ABLATION = {
    'pose loss': Variant(('pose',)),
    '+ consistency': Variant(('pose', 'consistency')),
    '+ reprojection': Variant(),
    'without weights': Variant(weighted=False),
}


def variant_named(name: str) -> Variant:
    """Give a row of the ablation, or that of a backbone: 'compact' or a name of timm."""
    if not name:
        raise ConfigError('a variant has no name; give one of '
                          f'{", ".join(ABLATION)}, or a backbone such as resnet18')
    return ABLATION.get(name) or Variant(backbone=name)


def bench_scene_geometry(
    train: Sequence[PosedImage], test: Sequence[PosedImage], variants: Sequence[str],
    training: SceneGeometryTraining, output: Path, *, device: str = 'cpu',
    minutes: float | None = None, say: Callable[[str], None] = lambda text: None,
) -> dict:
    """
    Train and measure each variant; what is finished in `output` is kept.

    test: posed photographs that are not in `train`. Gives the report, which is also in
    `output/scene_geometry.json`. Raises DataError for photographs that cannot be compared and for
    an output of others, ConfigError for variants that cannot be trained; both before any is.
    """
    _check_images({'to train': train}, test)
    folders = _folders(variants)
    trials = {name: _Trial(train, test, variant_named(name).of(training), output / folder, device,
                           minutes) for name, folder in folders.items()}
    return _compared(trials, output / 'scene_geometry.json', {
        'train': len(train), 'test': len(test), 'minutes': minutes}, say)


def bench_positions(
    known: Sequence[PosedImage], new: Sequence[PosedImage], test: Sequence[PosedImage],
    training: SceneGeometryTraining, output: Path, *, device: str = 'cpu',
    minutes: float | None = None, say: Callable[[str], None] = lambda text: None,
) -> dict:
    """
    Learn poses of known photographs, then the positions of new ones; measure before and after.

    Beside that the known ones are learned for as many steps more, which tells what the positions
    add. test: posed photographs of neither. What is finished in `output` is kept; the report is
    also in `output/positions.json`. Raises DataError as `bench_scene_geometry` does.
    """
    _check_images({'to learn poses from': known, 'to learn positions from': new}, test,
                  'another share of them')
    further = replace(training, rate=GOING_ON_RATE * training.rate)
    before = _Trial(known, test, training, output / 'known', device, minutes)
    trials = {
        'poses of the known': before,
        '+ more steps with these': _Trial(
            known, test, further, output / 'longer', device, minutes, before),
        '+ positions of the new': _Trial(
            new, test, replace(further, labels='position'), output / 'positions', device, minutes,
            before, known)}
    return _compared(trials, output / 'positions.json', {
        'train': f'{len(known)} with poses, {len(new)} with positions', 'test': len(test),
        'minutes': minutes}, say)


def _check_images(
    learned: dict[str, Sequence[PosedImage]], test: Sequence[PosedImage],
    remedy: str = 'other ones',
) -> None:
    """Refuse photographs that cannot be compared; learned: by what they are for."""
    names = {image.name for images in learned.values() for image in images}
    if shared := names & {image.name for image in test}:
        raise DataError(f'{len(shared)} photographs, such as {min(shared)}, are to train and to '
                        'measure; measure with others')
    for purpose, images in {**learned, 'to measure with': test}.items():
        if not images:
            raise DataError(f'no photographs are left {purpose}; give a data set with a split, '
                            f'or {remedy}')
    if unposed := [image.name for image in test if image.map_from_camera is None]:
        raise DataError(f'{len(unposed)} photographs to measure with, such as {unposed[0]}, have '
                        'no pose; measure with posed ones')


def _folders(variants: Sequence[str]) -> dict[str, str]:
    """Name the folder of each variant; ConfigError for two that would share one."""
    folders: dict[str, str] = {}
    for name in variants:
        folder = name.replace(' ', '_').replace('/', '_')
        if folder in folders.values():
            other = next(given for given in folders if folders[given] == folder)
            raise ConfigError(f"the variants '{other}' and '{name}' would both lie in the folder "
                              f"'{folder}'; give each variant once")
        folders[name] = folder
    return folders


def _compared(
    trials: dict[str, '_Trial'], path: Path, head: dict, say: Callable[[str], None],
) -> dict:
    """Give the report of trials, which is written to `path`; what is refused costs no training."""
    for trial in trials.values():
        SceneGeometry(trial.config.network)
    for trial in trials.values():
        trial.claim()
    results = {}
    for name, trial in trials.items():
        say(name)
        results[name] = trial.figures()
    report = json_ready({**head, 'results': results})
    write_text(path, json.dumps(report, indent=1) + '\n')
    return report


def parted(
    images: Sequence[PosedImage], share: float,
) -> tuple[list[PosedImage], list[PosedImage], list[PosedImage]]:
    """Part images of the splits 'train' and 'test' in their order, where a share is behind.

    Gives those to train on before and behind that place, and those to measure with behind it.
    """
    if not 0 < share < 1:
        raise ConfigError(f'a share of {share:g} of the photographs with poses leaves nothing to '
                          'compare; give one between 0 and 1')
    place = round(share * len(images))
    known, new = ([image for image in part if image.split == 'train']
                  for part in (images[:place], images[place:]))
    return known, new, [image for image in images[place:] if image.split == 'test']


@dataclass(frozen=True)
class _Trial:
    """One training in a folder that keeps its state and its figures."""

    images: Sequence[PosedImage]
    test: Sequence[PosedImage]
    config: SceneGeometryTraining
    folder: Path
    device: str
    minutes: float | None
    start: '_Trial | None' = None  # whose network this one goes on from
    anchors: Sequence[PosedImage] = ()

    @property
    def mark(self) -> str:
        """Give the mark of what the state and the figures depend on."""
        return mark_of(json.dumps([
            to_dict(self.config), self.minutes, None if self.start is None else self.start.mark,
            *([describe_image(image) for image in given]
              for given in (self.images, self.anchors, self.test))]))

    def claim(self) -> None:
        """Make the folder; DataError where it holds a training of anything else."""
        kept = [name for name in (_RESULT, _CHECKPOINT) if (self.folder / name).exists()]
        if not kept:  # nothing in it could be lost
            (self.folder / MARK).unlink(missing_ok=True)
        elif not (self.folder / MARK).exists():
            raise DataError(f'{self.folder / kept[0]} does not say which photographs it is of; '
                            f'{_REMEDY}')
        mark_work_folder(self.folder, self.mark, holds='a training', remedy=_REMEDY)

    def network(
        self, report: Callable[[float, dict], None] = lambda progress, numbers: None,
    ) -> SceneGeometry:
        """Train it, or go on with what is in the folder; at once where that is finished."""
        start = None if self.start is None else self.start.network()
        return train_scene_geometry(
            self.images, self.config, start=start, anchors=self.anchors,
            checkpoint=self.folder / _CHECKPOINT, minutes=self.minutes, device=self.device,
            report=report)

    def figures(self) -> dict:
        """Give the figures in the folder, which is claimed, or find them.

        CPU seconds are those of this run of the program.
        """
        path, steps = self.folder / _RESULT, [0]

        def count(progress: float, numbers: dict) -> None:
            steps[0] = numbers['step']

        if not path.exists():
            began = time.process_time()
            network = self.network(count)
            seconds = time.process_time() - began
            write_text(path, json.dumps(json_ready({
                **measured(network, self.test), 'steps': steps[0], 'cpu_seconds': seconds,
                'parameters': sum(p.numel() for p in network.parameters()),
                'training': to_dict(self.config)})))
        return json.loads(path.read_text(encoding='utf-8'))


def measured(network: SceneGeometry, test: Sequence[PosedImage]) -> dict:
    """Measure errors and time of a network on photographs with known poses, doubts aside."""
    errors, milliseconds = errors_of(network, test)
    return {'median_m': median(errors.translation), 'median_deg': median(errors.rotation),
            'within_goal': recall(errors, *_GOAL), 'ms': milliseconds}


def errors_of(
    network: SceneGeometry, images: Sequence[PosedImage],
) -> tuple[PoseErrors, float]:
    """Give the errors of all poses that a network sees, and the median CPU time in milliseconds.

    The time is that of a photograph in memory until its pose, of one thread or several together.
    """
    reader, found, times = GeometryReader(network), [], []
    for image in images:
        loaded = replace(image, pixels=image.rgb(), path=None)
        began = time.process_time()
        found.append(reader.look(loaded).map_from_camera)
        times.append(1000 * (time.process_time() - began))
    errors = pose_errors(found, [image.map_from_camera for image in images])
    return errors, float(np.median(times[_WARM:] or times))


def cells(result: dict) -> tuple[str, ...]:
    """Write the figures of one variant in the order of COLUMNS."""
    return (number(result['median_m'], 100), number(result['median_deg']),
            f'{result["within_goal"]:.0%}', f'{result["parameters"] / 1e6:.1f} M',
            number(result['ms']), str(result['steps']), number(result['cpu_seconds']))


def print_scene_geometry(report: dict) -> None:
    """Print a row for each variant."""
    table = Table(title=f'{report["train"]} images learned, {report["test"]} measured',
                  title_justify='left')
    table.add_column('variant')
    for name in COLUMNS:
        table.add_column(name, justify='right')
    for name, result in report['results'].items():
        table.add_row(name, *cells(result))
    Console().print(table)


def write_section(report: dict, markdown: Path, name: str, command: str) -> None:
    """Put the table into the section of a data set in a document."""
    lines = [f'## {name}', '',
             f'{report["train"]} images learned, {report["test"]} measured: `{command}`', '',
             row('variant', *COLUMNS), row('---', *['---:'] * len(COLUMNS))]
    lines += [row(variant, *cells(result)) for variant, result in report['results'].items()]
    text = with_section(text_of(markdown), name, '\n' + '\n'.join(lines) + '\n\n', head=HEAD)
    write_text(markdown, text)
