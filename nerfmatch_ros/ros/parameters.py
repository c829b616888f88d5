"""The parameters of both nodes: defaults, descriptions, limits, what contradicts what."""

from dataclasses import dataclass
import re

from nerfmatch_ros.ros.parameter_field import parameter

_TOPIC = re.compile(r'/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*', re.ASCII)
_SHA256 = re.compile(r'[0-9a-f]{64}')


@dataclass(frozen=True)
class SharedParameters:
    """What the localizer and the refiner have in common."""

    map_path: str = parameter(
        '', 'Folder of the map that `nerfmatch build` wrote; required. A change takes effect when '
        'the node is configured or the map loaded anew.', runtime=True)
    map_sha256: str = parameter(
        '', 'Only a map with this sha256 is loaded. Empty: any.', runtime=True)
    device: str = parameter(
        'auto', "Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', which takes a GPU where "
        'there is one.')
    threads: int = parameter(
        0, 'CPU threads of one inference. 0: as many as PyTorch chooses.', limits=(0, 256))
    precision: str = parameter(
        'map', "Of the networks. map: the map's own; auto: half precision where the device is "
        'faster in it.', choices=('map', 'auto', 'float32', 'bfloat16', 'float16'))
    max_gpu_memory_fraction: float = parameter(
        0.9, "Share of the GPU's memory that this process may take.", limits=(0.05, 1.0))
    warmup: bool = parameter(
        True, 'Localize an empty image once before the first real one, which is slow otherwise.')
    global_frame_id: str = parameter(
        'map', 'Frame in which poses are given, and parent of the transform.')
    base_frame_id: str = parameter('base_link', 'Frame of the body that is localized.')
    camera_frame_id: str = parameter(
        '', 'Optical frame of the camera. Empty: the frame_id of the image.')
    pose_frame: str = parameter(
        'base', 'Whose pose is published; with tf_mode map_to_camera it is always the camera.',
        choices=('base', 'camera'))
    tf_mode: str = parameter(
        'map_to_odom', 'Which transform is broadcast, and with it where motion between two images '
        'comes from: map_to_odom needs odometry on /tf, map_to_base and map_to_camera work '
        'without, none broadcasts nothing and uses odometry where there is some.',
        choices=('map_to_odom', 'map_to_base', 'map_to_camera', 'none'))
    wait_for_transform: float = parameter(
        0.2, 'Seconds that an image waits for the transforms of its stamp.', limits=(0.0, 5.0),
        runtime=True)
    tf_buffer_duration: float = parameter(
        30.0, 'Seconds of transforms that are kept.', limits=(1.0, 600.0))
    camera_names: tuple[str, ...] = parameter(
        (), 'Names of several cameras, each with the topics NAME/image and NAME/camera_info. '
        "['']: one camera, topics image and camera_info.")
    image_transport: str = parameter(
        'raw', 'raw: sensor_msgs/Image on image; compressed: CompressedImage on '
        'image/compressed.', choices=('raw', 'compressed'))
    image_qos: str = parameter(
        'sensor_data', 'sensor_data hears every publisher; reliable hears reliable ones only, and '
        'loses nothing on a slow network.', choices=('sensor_data', 'reliable'))
    rectified: str = parameter(
        'auto', 'Whether the images are rectified already. auto: if their topic has rect in its '
        'name.',
        choices=('auto', 'true', 'false'))
    covariance_scale: float = parameter(
        1.0, 'Factor on the covariance of every pose.', limits=(0.01, 1e4), runtime=True)
    min_probability: float = parameter(
        0.0, 'A pose that the judge of the map gives a smaller probability of being correct does '
        'not count. 0: all count, as they do in a map without a judge.', limits=(0.0, 1.0),
        runtime=True)
    covariance_diagonal_only: bool = parameter(
        False, 'Publish the diagonal of covariances only: some consumers refuse negative entries.',
        runtime=True)
    autostart: bool = parameter(
        True, 'Configure and activate at the start. Set to false under a lifecycle manager.')
    bond_heartbeat_period: float = parameter(
        0.0, 'Seconds between signs of life for a lifecycle manager, which needs bondpy. 0: none.',
        limits=(0.0, 60.0))

    def faults(self) -> list[str]:
        """Say what is missing or contradicts each other, each with a remedy; [] if nothing."""
        faults = []
        if not self.map_path:
            faults.append('parameter map_path is empty; give the folder of a map: '
                          '--ros-args -p map_path:=FOLDER')
        if self.map_sha256 and not _SHA256.fullmatch(self.map_sha256):
            faults.append(f"parameter map_sha256 is '{self.map_sha256}'; give 64 hexadecimal "
                          'digits in lower case, or nothing')
        for name in self.camera_names:
            if not _TOPIC.fullmatch(name):
                faults.append(f"parameter camera_names names '{name}'; give the part of a topic's "
                              'name before /image')
        if len(set(self.camera_names)) < len(self.camera_names):
            faults.append(f'parameter camera_names names a camera twice: {self.camera_names}')
        if len(self.camera_names) > 1 and 'camera' in (
                self.pose_frame, self.tf_mode.removeprefix('map_to_')):
            faults.append(
                f'parameter camera_names names {len(self.camera_names)} cameras, but by tf_mode '
                f'{self.tf_mode} and pose_frame {self.pose_frame} the pose is that of one; '
                'localize a base')
        if len(self.camera_names) > 1 and self.camera_frame_id:
            faults.append(
                f"parameter camera_frame_id is '{self.camera_frame_id}' for all of "
                f'{len(self.camera_names)} camera_names; leave it empty, and let each image say '
                'its own frame')
        if self.wait_for_transform > self.tf_buffer_duration:
            faults.append(
                f'parameter wait_for_transform is {self.wait_for_transform} and '
                f'tf_buffer_duration {self.tf_buffer_duration}; nobody waits for what is kept '
                'no longer, wait less or keep more')
        return faults + self._frame_faults(self._frames())

    def _frames(self) -> dict[str, str]:
        """Give the frames that must be named and must differ, by their parameter."""
        frames = {'global_frame_id': self.global_frame_id}
        if self.tf_mode != 'map_to_camera':
            frames['base_frame_id'] = self.base_frame_id
        return frames

    def _frame_faults(self, frames: dict[str, str]) -> list[str]:
        faults = []
        if self.camera_frame_id:
            frames = {**frames, 'camera_frame_id': self.camera_frame_id}
        for name, frame in frames.items():
            if not frame:
                faults.append(f'parameter {name} is empty; name the frame')
            if frame.startswith('/'):
                faults.append(f"parameter {name} is '{frame}'; frame names have no leading slash")
        for name, frame in list(frames.items()):
            for other, same in frames.items():
                # A camera may be its own base.
                if other > name and same == frame and {name, other} != {
                        'base_frame_id', 'camera_frame_id'}:
                    faults.append(f"parameters {name} and {other} are both '{frame}'; "
                                  'they must differ')
        return faults


@dataclass(frozen=True)
class LocalizerParameters(SharedParameters):
    """Parameters of the localizer."""

    odom_frame_id: str = parameter('odom', 'Frame of the odometry.')
    tf_broadcast: bool = parameter(
        True, 'Broadcast the transform that tf_mode names.', runtime=True)
    transform_tolerance: float = parameter(
        0.1, 'Seconds that map to odom is dated ahead, so that others need not wait for it. '
        'Corrections become visible that much later; keep it above the period of the '
        'broadcast.', limits=(0.0, 2.0), runtime=True)
    tf_publish_rate: float = parameter(
        20.0, 'How often map to odom is broadcast, Hz.', limits=(1.0, 200.0))
    tf_stale_timeout: float = parameter(
        0.0, 'Seconds without an accepted pose after which map to odom is broadcast no more. '
        '0: never.', limits=(0.0, 3600.0), runtime=True)
    max_image_age: float = parameter(
        0.5, 'Images older than that many seconds are dropped. 0: none, as for a replay.',
        limits=(0.0, 60.0), runtime=True)
    max_update_rate: float = parameter(
        0.0, 'Images localized in a second at most, Hz. 0: as many as can be.',
        limits=(0.0, 100.0), runtime=True)
    frozen_after: int = parameter(
        10, 'Images in a row with the same bytes after which the camera counts as frozen and they '
        'are dropped. 0: never, for simulated cameras without noise.', limits=(0, 1_000_000),
        runtime=True)
    camera_info_timeout: float = parameter(
        5.0, 'Seconds without a usable camera_info after which the node warns.',
        limits=(0.1, 3600.0), runtime=True)
    stamp_zero_as_now: bool = parameter(
        False, 'Take an image with stamp 0 for one of now, for drivers without a clock. '
        'False: it is dropped.')
    localizer: str = parameter(
        'map', 'What finds poses. map: what the map says, else nerfmatch; nerfmatch: matching '
        'with the map; scene_geometry: one network alone, without a search; hybrid: matching, '
        "which looks first from the network's pose. The last two need a map that was built with "
        '--scene-geometry.',
        choices=('map', 'nerfmatch', 'scene_geometry', 'hybrid'))
    mode: str = parameter(
        'auto', 'auto: look from the predicted pose; global: search the whole map for every '
        'image.', choices=('auto', 'global'), runtime=True)
    rounds: int = parameter(
        0, 'Rounds of refinement of every image, in this node; the refiner makes its own.',
        limits=(0, 20), runtime=True)
    retrieval_top_k: int = parameter(
        0, "Most similar reference views that are matched. 0: the map's own number.",
        limits=(0, 100), runtime=True)
    min_inliers: int = parameter(
        0, "Matches that must agree with a pose. 0: the map's own number.", limits=(0, 10000),
        runtime=True)
    min_inlier_ratio: float = parameter(
        0.0, "Share of the matches that must agree with a pose. 0: the map's own share.",
        limits=(0.0, 1.0), runtime=True)
    max_reproj_error: float = parameter(
        0.0, "Largest error of a match that agrees, pixels. 0: the map's own error.",
        limits=(0.0, 100.0), runtime=True)
    gate_chi2: float = parameter(
        22.46, 'A pose farther from the prediction, in squared standard deviations, is refused; '
        'the default refuses one good pose in a thousand. 0: none is refused.',
        limits=(0.0, 1e6), runtime=True)
    init_consistent_fixes: int = parameter(
        2, 'Poses in a row that must agree before the first one is given out.', limits=(1, 20),
        runtime=True)
    relocalize_after_rejects: int = parameter(
        3, 'Refused poses in a row that replace the prediction if they agree with one another.',
        limits=(1, 100), runtime=True)
    lost_after_failures: int = parameter(
        3, 'Images in a row without an accepted pose after which the node counts as lost.',
        limits=(1, 1000), runtime=True)
    lost_timeout: float = parameter(
        5.0, 'Seconds without an accepted pose after which the node counts as lost. 0: off.',
        limits=(0.0, 3600.0), runtime=True)
    relocalize_timeout: float = parameter(
        5.0, 'Seconds that the service ~/relocalize waits for an answer.', limits=(0.1, 300.0),
        runtime=True)
    correction_horizon: float = parameter(
        10.0, 'Seconds of poses that are kept for late refined ones.', limits=(0.0, 600.0),
        runtime=True)
    odom_noise_trans: float = parameter(
        0.02, 'Standard deviation of the odometry: metres for each metre.', limits=(0.0, 10.0),
        runtime=True)
    odom_noise_rot: float = parameter(
        0.01, 'Standard deviation of the odometry: radians for each metre and radian.',
        limits=(0.0, 10.0), runtime=True)
    max_speed: float = parameter(
        5.0, 'The body is never faster, m/s; a bound on its motion where there is no odometry.',
        limits=(0.01, 1000.0), runtime=True)
    max_turn_rate: float = parameter(
        3.0, 'The body never turns faster, rad/s; a bound on its motion where there is no '
        'odometry.', limits=(0.01, 1000.0), runtime=True)
    slew_linear: float = parameter(
        0.5, 'How fast a correction moves the robot on /tf, m/s. 0: every correction is made '
        'at once.',
        limits=(0.0, 1000.0), runtime=True)
    slew_angular: float = parameter(
        0.5, 'How fast a correction turns the robot on /tf, rad/s. 0: no limit beside '
        'slew_linear.',
        limits=(0.0, 1000.0), runtime=True)
    snap_distance: float = parameter(
        1.0, 'A correction beyond that many metres is made at once.', limits=(0.0, 1000.0),
        runtime=True)
    snap_angle: float = parameter(
        0.5, 'A correction beyond that many radians is made at once.', limits=(0.0, 3.2),
        runtime=True)
    two_d_mode: bool = parameter(
        False, 'The body stays upright on the plane z = 0 of the map.')
    set_initial_pose: bool = parameter(
        False, 'Look first near initial_pose when the node is activated.', runtime=True)
    initial_pose_x: float = parameter(
        0.0, 'Initial pose of the body, metres.', limits=(-1e7, 1e7), runtime=True,
        name='initial_pose.x')
    initial_pose_y: float = parameter(
        0.0, 'Initial pose of the body, metres.', limits=(-1e7, 1e7), runtime=True,
        name='initial_pose.y')
    initial_pose_z: float = parameter(
        0.0, 'Initial pose of the body, metres.', limits=(-1e7, 1e7), runtime=True,
        name='initial_pose.z')
    initial_pose_roll: float = parameter(
        0.0, 'Initial pose of the body, radians about the x axis of the map.',
        limits=(-6.2832, 6.2832), runtime=True, name='initial_pose.roll')
    initial_pose_pitch: float = parameter(
        0.0, 'Initial pose of the body, radians about the y axis of the map, after roll.',
        limits=(-6.2832, 6.2832), runtime=True, name='initial_pose.pitch')
    initial_pose_yaw: float = parameter(
        0.0, 'Initial pose of the body, radians about the z axis of the map, after pitch.',
        limits=(-6.2832, 6.2832), runtime=True, name='initial_pose.yaw')
    save_pose_path: str = parameter(
        '', 'File in which the newest pose is kept for the next start. Empty: none.',
        runtime=True)
    save_pose_rate: float = parameter(
        0.5, 'How often the pose is saved, Hz. 0: only when the node stops or is asked to.',
        limits=(0.0, 10.0))
    initialize_at_saved_pose: bool = parameter(
        False, 'Look first near the saved pose when the node is activated; it goes before '
        'initial_pose.', runtime=True)
    saved_pose_max_age: float = parameter(
        60.0, 'A saved pose older than that many seconds is not used. 0: any age.',
        limits=(0.0, 1e9), runtime=True)

    def faults(self) -> list[str]:
        """Say what is missing or contradicts each other, each with a remedy; [] if nothing."""
        faults = super().faults()
        if self.initialize_at_saved_pose and not self.save_pose_path:
            faults.append('parameter initialize_at_saved_pose is true and save_pose_path is '
                          'empty; name the file of the saved pose')
        camera_is_body = self.tf_mode == 'map_to_camera' or (
            self.tf_mode == 'none' and self.pose_frame == 'camera')
        if self.two_d_mode and camera_is_body:
            faults.append(
                f'parameter two_d_mode is true, tf_mode {self.tf_mode} and pose_frame '
                f'{self.pose_frame}; a camera does not stay on a plane, localize a base')
        return faults

    def _frames(self) -> dict[str, str]:
        frames = super()._frames()
        if self.tf_mode in ('map_to_odom', 'none'):
            frames['odom_frame_id'] = self.odom_frame_id
        return frames


@dataclass(frozen=True)
class RefinerParameters(SharedParameters):
    """Parameters of the refiner."""

    refine_enabled: bool = parameter(
        True, 'Refine poses; false lets the node idle.', runtime=True, name='refine.enabled')
    refine_max_age: float = parameter(
        5.0, 'A refinement whose image is older than that many seconds is given up.',
        limits=(0.1, 600.0), runtime=True, name='refine.max_age')
    refine_iterations: int = parameter(
        1, "Rounds of the map's schedule of refinement for one pose.", limits=(1, 20),
        runtime=True, name='refine.iterations')
    refine_frame_cache_mb: int = parameter(
        256, 'Memory for images whose pose may still come, megabytes.', limits=(1, 65536),
        name='refine.frame_cache_mb')
    refine_nice: int = parameter(
        5, 'How far the process stands back behind others on the CPU, as for nice.',
        limits=(0, 19), name='refine.nice')
