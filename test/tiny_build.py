"""The smallest build that goes through every stage: seconds on one core, no accuracy."""

from dataclasses import replace

from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.localization.localizer import LocalizerConfig
from nerfmatch_ros.mapping.build_map import BuildConfig
from nerfmatch_ros.mapping.field_loss import FieldTrainingConfig
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.radiance_field.grid_field import GridFieldConfig
from nerfmatch_ros.radiance_field.mip_field import MipFieldConfig
from nerfmatch_ros.scene_map import FieldConfig

CAMERA = default_camera(160, 120)
TINY = BuildConfig(
    minutes=None, longest_side=96, surface_points=400, words=12, held_out=1,
    field=FieldConfig(grid=GridFieldConfig(
        levels=4, finest=128, log2_entries=12, octaves=3, width=16, depth=3, samples=10,
        guide_samples=48, guide_cells=48)),
    # Steep rates and weights bring opaque surfaces within a second.
    field_training=FieldTrainingConfig(
        steps=60, rays=768, depth_rays=64, longest_side=96, table_rate=0.1, network_rate=0.02,
        final_rate=1.0, distortion_weight=0.0, opacity_weight=1.0, depth_weight=1.0,
        delayed=0.01),
    matcher=MatcherConfig(channels=32, fine_channels=8, point_hidden=32, octaves=4,
                          threshold=1e-5),
    matcher_training=MatcherTrainingConfig(steps=6, batch=2, points=100, fine_matches=40),
    localization=LocalizerConfig(min_inliers=4, min_inlier_ratio=0.0))
TINY_MIP = replace(
    TINY, surface_points=100,
    field=FieldConfig(kind='mip', mip=MipFieldConfig(
        width=16, depth=4, skip=1, position_octaves=4, direction_octaves=2,
        appearance_channels=3, coarse_samples=16, fine_samples=16)),
    field_training=replace(TINY.field_training, steps=40, rays=512, opacity_weight=3.0,
                           depth_weight=3.0),
    matcher_training=replace(TINY.matcher_training, steps=2))


def tiny_images(room, count=12):
    """Pictures of the room with their depth, so that the field shows surfaces soon."""
    return synthetic_images('train', count, CAMERA, room=room, supersample=1, depth=True)
