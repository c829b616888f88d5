"""A localizer without retrieval, matching or search: one network, one step, constant time.

The network sees a picture and says of each cell where it lies in the map and in the camera; the
motion between both is the pose. What it costs does not depend on the size of the map.
"""

from dataclasses import dataclass

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import as_tensor, WorkingView
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.geometry_pose import GeometryPose, pose_of_geometry
from nerfmatch_ros.localization.geometry_trust import GeometryCalibration, GeometryTrust
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.scene_geometry import cell_rays, SceneGeometry
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch
from torch import Tensor

_CAMERAS_KEPT = 8  # whose views and rays are remembered


@dataclass(frozen=True)
class _Sight:
    """How the network sees the pictures of one camera."""

    view: WorkingView
    rays: Tensor  # (1, hc, wc, 3)


class GeometryReader:
    """Reads scene geometry off photographs of any camera; call it from one thread at a time.

    Computed in single precision, as points are metres.
    """

    def __init__(self, network: SceneGeometry, calibration: GeometryCalibration | None = None):
        """network: for inference, on its device."""
        self.network, self.trust = network, GeometryTrust(calibration)
        self._sights: dict[Camera, _Sight] = {}

    @staticmethod
    def of(scene_map: SceneMap, name: str) -> 'GeometryReader':
        """Read with the network of a map; ConfigError where it has none. name: who needs it."""
        if scene_map.scene_geometry is None:
            raise ConfigError(
                f"localizer '{name}' needs a map with scene geometry, and this one has none; "
                'build it with `nerfmatch build --scene-geometry`, train some for it with '
                "`nerfmatch train-scene-geometry`, or choose the localizer 'nerfmatch'")
        return GeometryReader(
            scene_map.scene_geometry,
            GeometryCalibration.from_dict(scene_map.scene_geometry_calibration))

    @torch.inference_mode()
    def look(self, image: PosedImage) -> GeometryPose:
        """Give the pose that the network sees in a photograph, with its evidence."""
        sight = self._sight(image.camera)
        picture = as_tensor(sight.view.picture(image.rgb())).to(sight.rays.device)
        seen = self.network(picture[None], sight.rays)
        return pose_of_geometry(seen.map_points[0], seen.camera_points[0], seen.weights[0])

    def estimate(self, image: PosedImage) -> PoseEstimate:
        """Give the pose of a photograph with its covariance, or why it does not count."""
        found = self.look(image)
        return self.trust.estimate(
            found, image.camera, cells=self._sight(image.camera).rays[..., 0].numel())

    def _sight(self, camera: Camera) -> _Sight:
        if camera not in self._sights:
            if len(self._sights) == _CAMERAS_KEPT:
                del self._sights[next(iter(self._sights))]
            view = self.network.working_view(camera)
            rays = cell_rays(view.camera)[None].to(self.network.centre.device)
            self._sights[camera] = _Sight(view, rays)
        return self._sights[camera]


class SceneGeometryLocalizer(Localizer):
    """Localizes by scene geometry alone; `refine` is the map's, as of any localizer.

    `set_precision` concerns the map's networks, which only refinement uses.
    """

    refines = False  # a pose in constant time is what it is for; set where more is asked for

    def __init__(self, scene_map: SceneMap, config: LocalizerConfig | None = None):
        """Raise ConfigError for a map without scene geometry."""
        self.reader = GeometryReader.of(scene_map, 'scene_geometry')
        super().__init__(scene_map, config)

    @property
    def judged_limit(self) -> tuple[float, float] | None:
        """Metres and radians that probabilities are of; None where the map's judge gives them."""
        calibration = self.reader.trust.calibration
        if calibration is None or (self.refines and self.config.refine):
            return None
        return calibration.limit_m, calibration.limit_rad

    def localize(self, image: PosedImage, prior: np.ndarray | None = None) -> PoseEstimate:
        """Estimate the pose of an image from its pixels and camera, in one step.

        prior: not looked at, none is needed. Cells count as matches, those that bear the pose as
        inliers; the reprojection error is the median distance from a cell to its point in the map.
        A pose that is not likely enough to be right is no pose, and the reason says so.
        """
        with self._stage('geometry'):
            return self.reader.estimate(image)
