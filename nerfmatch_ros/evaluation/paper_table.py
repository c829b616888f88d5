"""A row of the NeRFMatch paper's tables, for the scenes that it was measured on.

The figures are those of Zhou et al., The NeRFect Match (ECCV 2024). The paper's recalls are of all
of 7-Scenes, so for one of its scenes the published figures are the average and say so.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from nerfmatch_ros.evaluation.metrics import median, PoseErrors, recall

AVERAGE = '7-Scenes average'


@dataclass(frozen=True)
class BenchmarkScene:
    """A scene and how its benchmark counts."""

    name: str
    benchmark: str  # 'Cambridge Landmarks' or '7-Scenes'
    limit_cm: float  # a pose counts as found within this and `limit_deg`
    limit_deg: float
    queries: int  # frames of the whole test split


@dataclass(frozen=True)
class PublishedFigures:
    """What the paper reports of one method."""

    method: str
    of: str  # the scene, or the average that is all that was published
    median_cm: float
    median_deg: float
    recall: float | None = None  # share of the queries within the benchmark's limits


SCENES = (
    *(BenchmarkScene(name, 'Cambridge Landmarks', limit_cm, 5.0, queries)
      for name, limit_cm, queries in (
          ('KingsCollege', 38.0, 343), ('OldHospital', 22.0, 182), ('ShopFacade', 15.0, 103),
          ('StMarysChurch', 35.0, 530), ('GreatCourt', 45.0, 760))),
    *(BenchmarkScene(name, '7-Scenes', 5.0, 5.0, queries)
      for name, queries in (
          ('chess', 2000), ('fire', 2000), ('heads', 1000), ('office', 4000), ('pumpkin', 2000),
          ('redkitchen', 5000), ('stairs', 1000))),
)

# (cm, degrees), and for 7-Scenes the recall.
_PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    'NeRFMatch, NeRF+RGB': {
        'KingsCollege': (13.0, 0.2), 'OldHospital': (19.4, 0.4), 'ShopFacade': (8.5, 0.4),
        'StMarysChurch': (7.9, 0.3), 'GreatCourt': (17.5, 0.1), AVERAGE: (2.7, 0.7, 0.782)},
    'NeRFMatch, NeRF only': {
        'KingsCollege': (12.7, 0.2), 'OldHospital': (20.7, 0.4), 'ShopFacade': (8.7, 0.4),
        'StMarysChurch': (11.3, 0.4), 'GreatCourt': (19.5, 0.1), AVERAGE: (2.8, 0.7, 0.784)},
    'NeRFMatch-Mini': {
        'KingsCollege': (19.0, 0.3), 'OldHospital': (30.2, 0.6), 'ShopFacade': (10.3, 0.5),
        'StMarysChurch': (11.3, 0.4), 'GreatCourt': (29.1, 0.2), AVERAGE: (3.1, 0.9, 0.744)},
    'HLoc (SuperPoint+SuperGlue)': {
        'KingsCollege': (12.0, 0.2), 'OldHospital': (15.0, 0.3), 'ShopFacade': (4.0, 0.2),
        'StMarysChurch': (7.0, 0.2), 'GreatCourt': (16.0, 0.1), AVERAGE: (1.3, 0.3, 0.957)},
    'ACE': {
        'KingsCollege': (28.0, 0.4), 'OldHospital': (31.0, 0.6), 'ShopFacade': (5.0, 0.3),
        'StMarysChurch': (18.0, 0.6), 'GreatCourt': (43.0, 0.2), AVERAGE: (1.1, 0.6, 0.971)},
}


def known_scene(*paths: Path | None) -> BenchmarkScene | None:
    """
    Recognise a scene by a folder of its name, or by a file `transforms_<scene>_<split>`.

    Upper and lower case are alike, and the last folder counts most. A path is taken as it is
    given: folders above the current one say nothing.
    """
    by_name = {scene.name.casefold(): scene for scene in SCENES}
    for path in paths:
        if path is None:
            continue
        for part in (path.resolve().name, *reversed(path.parts)):
            name = part.casefold().removesuffix('.json')
            for split in ('_train', '_test'):
                if name.startswith('transforms_') and name.endswith(split):
                    name = name.removeprefix('transforms_').removesuffix(split)
            if name in by_name:
                return by_name[name]
    return None


def published(scene: BenchmarkScene) -> list[PublishedFigures]:
    """Give the paper's figures of each method for the scene, else for its benchmark."""
    return [PublishedFigures(method, of, *figures[of])
            for method, figures in _PUBLISHED.items()
            for of in [scene.name if scene.name in figures else AVERAGE]]


def paper_row(scene: BenchmarkScene, errors: PoseErrors) -> dict:
    """Give the paper's measures of these errors, beside the published ones, as plain values."""
    return {
        'scene': scene.name,
        'benchmark': scene.benchmark,
        'queries': len(errors),
        'queries_of_benchmark': scene.queries,
        'limit_cm': scene.limit_cm,
        'limit_deg': scene.limit_deg,
        'median_cm': 100 * median(errors.translation),
        'median_deg': median(errors.rotation),
        'recall': recall(errors, scene.limit_cm / 100, scene.limit_deg),
        'published': [asdict(figures) for figures in published(scene)],
    }


def print_paper_row(row: dict) -> None:
    """Print a row of `paper_row`, nan and infinity as None, as a table."""
    from rich.console import Console
    from rich.table import Table
    limits = f'{row["limit_cm"]:g} cm, {row["limit_deg"]:g} deg'
    table = Table(title=f'{row["scene"]} ({row["benchmark"]})', title_justify='left')
    table.add_column('method')
    table.add_column('of')
    for measure in ('median', f'within {limits}', 'queries'):
        table.add_column(measure, justify='right')
    table.add_row('this map', row['scene'], *_cells(row),
                  f'{row["queries"]} of {row["queries_of_benchmark"]}')
    for figures in row['published']:
        table.add_row(figures['method'], figures['of'], *_cells(figures), '')
    Console().print(table)


def _cells(figures: dict) -> list[str]:
    centimetres, degrees, share = (figures[key] for key in ('median_cm', 'median_deg', 'recall'))
    return ['-' if centimetres is None else f'{centimetres:.1f} cm, {degrees:.1f} deg',
            '-' if share is None else f'{100 * share:.1f} %']
