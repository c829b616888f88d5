"""
Compares what may describe a point to the matcher, as Table 3 of the paper does.

    python tools/ablate_point_features.py --images DIR --output DIR

One field is trained; then one matcher per kind of point feature, with the same steps, seed and
data; each is evaluated on the test images. Writes OUTPUT/ablation.md and ablation.json. Finished
rows are kept, so a run that was cut short goes on. Budgets are steps, not minutes, so that a busy
machine treats all rows alike.
"""

from dataclasses import replace
import json
from pathlib import Path
import shutil
from typing import Annotated

from nerfmatch_ros.config import choose_device
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.evaluation.evaluate import localize_all, summarize
from nerfmatch_ros.files import write_text
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.mapping.build_map import build_map, BuildConfig, FIELD_PICTURE
from nerfmatch_ros.mapping.field_loss import FieldTrainingConfig
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.radiance_field.grid_field import GridFieldConfig
import tyro

# name -> (point_feature, point_encoding)
KINDS = {
    'raw xyz': ('xyz', False),
    'encoded xyz': ('encoded_xyz', False),
    **{f'f^{j}': (f'f{j}', False) for j in range(1, GridFieldConfig().depth + 1)},
    **{f'f^{j} + encoded xyz': (f'f{j}', True) for j in (3,)},
}


def main(
    images: Annotated[Path, tyro.conf.arg(help='folder with train and test images')],
    output: Path,
    field_steps: int = 1200,
    matcher_steps: int = 300,
    longest_side: int = 320,
) -> None:
    """Run the comparison and print the table."""
    output.mkdir(parents=True, exist_ok=True)
    train, test = read_posed_images(images, 'train'), read_posed_images(images, 'test')
    done = output / 'ablation.json'
    rows = json.loads(done.read_text()) if done.exists() else {}
    for name, (feature, encoding) in KINDS.items():
        if name in rows:
            continue
        config = BuildConfig(
            minutes=None, longest_side=longest_side,
            field_training=FieldTrainingConfig(steps=field_steps),
            matcher_training=MatcherTrainingConfig(steps=matcher_steps),
            matcher=replace(MatcherConfig(), point_feature=feature, point_encoding=encoding))
        folder = output / feature / ('encoded' if encoding else 'alone')
        _share_field(output / 'field', folder)
        scene_map = build_map(train, folder, config, device=choose_device(),
                              keep_work_folder=True)
        _keep_field(folder, output / 'field')
        # The first pose alone: refinement would hide how well the features match.
        results = localize_all(Localizer(scene_map, LocalizerConfig(rounds=0)), test)
        report = summarize(results, scene_map.extent)
        rows[name] = {key: report[key] for key in (
            'median_translation_m', 'median_rotation_deg', 'recall', 'localized')}
        write_text(done, json.dumps(rows, indent=2))
    table = _table(rows, len(test), field_steps, matcher_steps)
    write_text(output / 'ablation.md', table)
    print(table)


FIELD_FILES = (
    'sparse_points.npz', 'depth.npz', 'field.safetensors', 'field.json', FIELD_PICTURE)


def _share_field(source: Path, folder: Path) -> None:
    """Give a new build the field that the first one trained."""
    work = folder.with_name(folder.name + '.build')
    work.mkdir(parents=True, exist_ok=True)
    for name in FIELD_FILES:
        if (source / name).exists():
            shutil.copy(source / name, work / name)


def _keep_field(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in FIELD_FILES:
        shutil.copy(folder.with_name(folder.name + '.build') / name, target / name)


def _table(rows: dict, queries: int, field_steps: int, matcher_steps: int) -> str:
    lines = [
        f'One field ({field_steps} steps) and one matcher per row ({matcher_steps} steps), '
        f'{queries} test images, first pose without refinement.', '',
        '| point feature | localized | median cm / deg | 10cm_1deg | 25cm_2deg | 50cm_5deg |',
        '|---|---|---|---|---|---|']
    for name, row in rows.items():
        metres, degrees = row['median_translation_m'], row['median_rotation_deg']
        median = '-' if metres is None else f'{100 * metres:.1f} / {degrees:.2f}'
        recalls = ' | '.join(
            f"{row['recall'][key]:.2f}" for key in ('10cm_1deg', '25cm_2deg', '50cm_5deg'))
        lines.append(f"| {name} | {row['localized']} | {median} | {recalls} |")
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    tyro.cli(main)
