"""Where to look first: initialpose, the parameters initial_pose.*, the pose saved last time."""

from pathlib import Path
import time
from typing import Any

from geometry_msgs.msg import PoseWithCovarianceStamped
from nerfmatch_ros.errors import DataError, NerfmatchError
from nerfmatch_ros.localization.pose_tracker import TrackedPose
from nerfmatch_ros.localization.saved_pose import load_pose, save_pose, SavedPose
from nerfmatch_ros.ros.conversions import read_pose_with_covariance, SECOND
import numpy as np
from scipy.spatial.transform import Rotation

MAX_FUTURE_NS = SECOND  # an initialpose dated further ahead is from another clock
_FAR = 10.0  # metres; a pose that is farther from every view of the map cannot be in it


class StartPose:
    """
    Gives the tracker a prior; a fix has to confirm it before a pose is published.

    Also keeps the newest pose in a file, where one is named.
    """

    def __init__(self, node):
        """node: the localizer node, whose pipeline has its map."""
        self._node = node
        self._newest: SavedPose | None = None
        self._saved_at = 0.0  # time.monotonic()

    def apply(self, parameters: Any):
        """Look near the saved pose or the initial pose of the parameters, if they are set so."""
        if parameters.initialize_at_saved_pose:
            try:
                saved = load_pose(
                    Path(parameters.save_pose_path).expanduser(),
                    map_sha256=self._node.pipeline.backend.map_sha256,
                    max_age=parameters.saved_pose_max_age or float('inf'), now=time.time())
                self._check_frames(saved)
            except NerfmatchError as error:
                self._node.get_logger().warning(str(error))
            else:
                self._set(saved.map_from_base, saved.covariance, 'saved pose')
                return
        if parameters.set_initial_pose:
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_euler('xyz', (
                parameters.initial_pose_roll, parameters.initial_pose_pitch,
                parameters.initial_pose_yaw)).as_matrix()
            pose[:3, 3] = (parameters.initial_pose_x, parameters.initial_pose_y,
                           parameters.initial_pose_z)
            self._try('initial_pose', pose, np.zeros((6, 6)))

    def take(self, message: PoseWithCovarianceStamped):
        """Look near an initialpose; DataError where it cannot be meant for this map."""
        pose, covariance, stamp, frame = read_pose_with_covariance(message)
        expected = self._node.parameters.values.global_frame_id
        if frame != expected:
            raise DataError(f"its frame_id is '{frame}'; poses are given in '{expected}'")
        ahead = stamp - self._node.now_ns()
        if ahead > MAX_FUTURE_NS:
            raise DataError(f'its stamp is {ahead / SECOND:.1f} s in the future; synchronize the '
                            'clocks, or set use_sim_time on both sides')
        self._check_near(pose)
        self._set(pose, covariance, 'initialpose')

    def remember(self, pose: TrackedPose):
        """Note the newest pose of the stream with the map it is in; under the node's lock."""
        self._newest = SavedPose(
            self._node.pipeline.backend.map_sha256, self._node.parameters.values.global_frame_id,
            self._body_frame(), time.time(), pose.map_from_base, pose.covariance)

    def save_regularly(self):
        """Save the newest pose, if it is time to."""
        parameters, now = self._node.parameters.values, time.monotonic()
        if (parameters.save_pose_path and parameters.save_pose_rate
                and now - self._saved_at >= 1 / parameters.save_pose_rate):
            self._saved_at = now
            self.save()

    def save(self) -> str:
        """Write the newest pose into its file; give why not, '' if it is there."""
        path, newest = self._node.parameters.values.save_pose_path, self._newest
        if not path:
            return 'save_pose_path is empty'
        if newest is None:
            return 'there is no pose yet'
        try:
            save_pose(Path(path).expanduser(), newest)
        except NerfmatchError as error:
            self._node.complaints.warning('save_pose', str(error))
            return str(error)
        return ''

    def _try(self, name: str, pose: np.ndarray, covariance: np.ndarray):
        try:
            self._check_near(pose)
        except DataError as error:
            self._node.get_logger().warning(f'{name} is not used: {error}')
        else:
            self._set(pose, covariance, name)

    def _set(self, pose: np.ndarray, covariance: np.ndarray, source: str):
        with self._node.lock:
            self._node.pipeline.tracker.set_prior(pose, covariance, source=source)
        x, y, z = pose[:3, 3]
        self._node.get_logger().info(
            f'looking first near {source} ({x:.2f}, {y:.2f}, {z:.2f}); an image has to confirm it')

    def _check_near(self, pose: np.ndarray):
        """Refuse a pose that no view of the map is anywhere near."""
        scene_map = self._node.pipeline.backend.scene_map
        views = scene_map.reference_poses[:, :3, 3]
        with np.errstate(over='ignore'):  # such a number is far enough
            distance = np.linalg.norm(views - pose[:3, 3], axis=1).min()
        if distance > _FAR + scene_map.extent:
            raise DataError(f'it lies {distance:.1f} m from the nearest view of the map, whose '
                            f'extent is {scene_map.extent:.1f} m; give one inside the map')

    def _body_frame(self) -> str:
        parameters = self._node.parameters.values
        if self._node.pipeline.frames.base is not None:
            return parameters.base_frame_id
        return parameters.camera_frame_id or 'camera'

    def _check_frames(self, saved: SavedPose):
        expected = self._node.parameters.values.global_frame_id, self._body_frame()
        if (saved.frame_id, saved.body_frame_id) != expected:
            raise DataError(
                f"the saved pose is that of '{saved.body_frame_id}' in '{saved.frame_id}', not of "
                f"'{expected[1]}' in '{expected[0]}'; the localizer starts without it")
