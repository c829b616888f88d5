"""The options of the parts of the localizer, made of the parameters of its node."""

from nerfmatch_ros.localization.frame_pipeline import PipelineOptions
from nerfmatch_ros.localization.pose_history import HistoryOptions
from nerfmatch_ros.localization.pose_slew import SlewLimits
from nerfmatch_ros.localization.pose_tracker import TrackerOptions
from nerfmatch_ros.ros.frame_gate import FrameGateOptions
from nerfmatch_ros.ros.parameters import LocalizerParameters


def tracker_options(parameters: LocalizerParameters) -> TrackerOptions:
    """Give the options of the pose stream."""
    return TrackerOptions(
        history=HistoryOptions(
            horizon=parameters.correction_horizon, odom_noise_trans=parameters.odom_noise_trans,
            odom_noise_rot=parameters.odom_noise_rot, gate_chi2=parameters.gate_chi2,
            max_speed=parameters.max_speed, max_turn_rate=parameters.max_turn_rate),
        init_consistent_fixes=parameters.init_consistent_fixes,
        relocalize_after_rejects=parameters.relocalize_after_rejects,
        lost_after_failures=parameters.lost_after_failures,
        lost_timeout=parameters.lost_timeout)


def pipeline_options(parameters: LocalizerParameters) -> PipelineOptions:
    """Give the options of one frame."""
    return PipelineOptions(
        search_globally=parameters.mode == 'global',
        covariance_scale=parameters.covariance_scale,
        min_probability=parameters.min_probability, two_d=parameters.two_d_mode)


def gate_options(parameters: LocalizerParameters) -> FrameGateOptions:
    """Give the options of the sifting by stamps."""
    return FrameGateOptions(
        max_image_age=parameters.max_image_age, max_update_rate=parameters.max_update_rate,
        frozen_after=parameters.frozen_after)


def slew_limits(parameters: LocalizerParameters) -> SlewLimits:
    """Give how fast the broadcast transform may follow a correction."""
    return SlewLimits(
        linear=parameters.slew_linear, angular=parameters.slew_angular,
        snap_distance=parameters.snap_distance, snap_angle=parameters.snap_angle)
