"""Depth of photographs out of a field."""

from dataclasses import replace

from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.mapping.field_depth import with_field_depth
from nerfmatch_ros.radiance_field.renderer import OPAQUE, render_view
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch


def test_photographs_get_the_depth_that_the_field_has_there(tiny_map, room):
    scene_map = SceneMap.load(tiny_map)
    bare, own = (replace(image, depth=None) for image in synthetic_images(
        'train', 2, default_camera(160, 96), room=room, supersample=1))
    own = replace(own, depth=np.ones((96, 160), np.float32))
    done = []
    found, kept = with_field_depth([bare, own], scene_map.field, scene_map.frame,
                                   report=lambda progress, numbers: done.append(progress))
    assert kept is own and done == [0.5, 1.0]
    seen = render_view(scene_map.field, scene_map.frame, bare.camera,
                       torch.from_numpy(bare.map_from_camera), stride=2)
    known = (seen.opacity > OPAQUE).numpy().reshape(48, 80)
    assert known.any()
    depth = found.depth_map()[::2, ::2]
    np.testing.assert_allclose(depth[known], seen.depth.numpy().reshape(48, 80)[known], rtol=1e-5)
    assert (depth[~known] == 0).all()
