"""The localizers by name: what a map, a command line or a node says finds where an image is.

    nerfmatch       matches the image with the map: `localizer.Localizer`
    scene_geometry  one network, one step, no search: `scene_geometry_localizer`
    hybrid          matches, and looks first from where the network says: `hybrid_localizer`
"""

from dataclasses import replace
from pathlib import Path

from nerfmatch_ros.config import from_dict
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.hybrid_localizer import HybridLocalizer
from nerfmatch_ros.localization.localizer import load_map, Localizer, LocalizerConfig, LOCALIZERS
from nerfmatch_ros.localization.scene_geometry_localizer import SceneGeometryLocalizer
from nerfmatch_ros.localization.schedule import checked_schedule
from nerfmatch_ros.scene_map import SceneMap

_KINDS = dict(zip(LOCALIZERS, (Localizer, SceneGeometryLocalizer, HybridLocalizer)))


def make_localizer(
    scene_map: SceneMap, name: str = 'map', config: LocalizerConfig | None = None,
) -> Localizer:
    """Give the localizer of this name in a map; 'map': the one that the configuration says.

    config: None for the map's own. Raises ConfigError for an unknown name, and where a map has no
    scene geometry and the localizer needs it.
    """
    config = config or from_dict(LocalizerConfig, scene_map.localization, 'map.yaml: localization')
    name = config.localizer if name == 'map' else name
    if name not in _KINDS:
        raise ConfigError(f"localizer '{name}' is unknown; use map, {', '.join(LOCALIZERS)}")
    return _KINDS[name](scene_map, config)


def load_localizer(
    folder: Path, name: str = 'map', *, device: str = 'cpu', threads: int | None = None,
    refine: str | None = None, precision: str = 'map',
) -> Localizer:
    """Load a map and give the localizer of this name in it.

    threads: of the CPU, None leaves them; refine: what `localize_and_refine` does, steps joined by
    '+', 'none', 'map' for the map's own; None: those too, unless scene geometry localizes alone;
    precision: of the networks that match, 'map' for the map's own
    """
    steps = None if refine in (None, 'map') else checked_schedule(
        () if refine == 'none' else refine.split('+'))
    localizer = make_localizer(load_map(folder, device, threads), name)
    if precision != 'map':
        localizer.set_precision(precision)
    localizer.refines = localizer.refines or refine is not None
    if steps is not None:
        localizer.config = replace(localizer.config, refine=steps)
    return localizer
