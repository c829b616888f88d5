"""A localizer that matches, and looks first from where the scene geometry says the camera is.

That replaces the search of the whole map or the retrieval where there is no better prior; it costs
one pass of a small network. Where the network is wrong, matching from its pose leads nowhere, and
the ordinary start follows.
"""

from dataclasses import replace

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig, Query
from nerfmatch_ros.localization.scene_geometry_localizer import GeometryReader
from nerfmatch_ros.scene_map import SceneMap
import numpy as np

HOPELESS = 0.1  # a probability below; matching from such a pose would only cost time
LED, MISLED, UNSURE = (  # of the `source` of an estimate
    'from scene geometry', 'scene geometry led nowhere', 'scene geometry unsure')


class HybridLocalizer(Localizer):
    """A prior comes first, then scene geometry, then the start that the map's settings name.

    Without a prior the `source` of an estimate ends in what became of the scene geometry.
    """

    def __init__(self, scene_map: SceneMap, config: LocalizerConfig | None = None):
        """Raise ConfigError for a map without scene geometry."""
        self.reader = GeometryReader.of(scene_map, 'hybrid')
        self._became = ''  # of the scene geometry, for the image that is worked on
        super().__init__(scene_map, config)

    def localize(self, image: PosedImage, prior: np.ndarray | None = None) -> PoseEstimate:
        """Estimate the pose of an image, as `Localizer.localize` does."""
        self._became = ''
        estimate = super().localize(image, prior)
        sources = [source for source in (estimate.source, self._became) if source]
        return replace(estimate, source=', '.join(sources))

    def _first_pose(self, query: Query) -> PoseEstimate:
        with self._stage('geometry'):
            guess = self.reader.look(query.image)
        # Matching is the better judge, so a guess need not be likely to be tried.
        if guess.evidence is None or self.reader.trust.probability(guess.evidence) < HOPELESS:
            self._became = UNSURE
            return super()._first_pose(query)
        estimate = self._look_from(guess.map_from_camera, query)
        self._became = MISLED if estimate.map_from_camera is None else LED
        return super()._first_pose(query) if estimate.map_from_camera is None else estimate
