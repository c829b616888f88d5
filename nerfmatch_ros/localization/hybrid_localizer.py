"""A localizer that matches, and looks first from where the scene geometry says the camera is.

That replaces the search of the whole map or the retrieval where there is no better prior; it costs
one pass of a small network. Where the network is wrong, matching from its pose leads nowhere, and
the ordinary start follows.
"""

from dataclasses import replace

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.iterative_refiner import is_near, refine
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig, Query, same_view
from nerfmatch_ros.localization.scene_geometry_localizer import GeometryReader
from nerfmatch_ros.scene_map import SceneMap
import numpy as np

FAR = 4.0  # cells of the picture, that matching moves half of the points by, for another look
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
        return self._told(super().localize(image, prior))

    def localize_and_refine(
        self, image: PosedImage, prior: np.ndarray | None = None,
    ) -> PoseEstimate:
        """Estimate the pose of an image, as `Localizer.localize_and_refine` does."""
        return self._told(super().localize_and_refine(image, prior))

    def _told(self, estimate: PoseEstimate) -> PoseEstimate:
        """Say what became of the scene geometry, which a refined estimate no longer does."""
        if not self._became or estimate.source.endswith(self._became):
            return estimate
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
        if estimate.map_from_camera is None:
            self._became = MISLED
            return super()._first_pose(query)
        self._became = LED
        metres, radians = same_view(estimate, query.view)
        if not is_near(estimate.map_from_camera, guess.map_from_camera,
                       (FAR * metres, FAR * radians)):
            # What was seen from there overlaps little with the image.
            estimate = refine(
                estimate, lambda best: self._look_from(best.map_from_camera, query), rounds=1)
        return estimate
