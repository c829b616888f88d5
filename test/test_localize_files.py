"""Photographs one by one, each by itself or from the pose of the one before."""

import cv2
from fake_localizer import FakeLocalizer
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.localize_files import localize_files
import numpy as np
import pytest


class Recorder(FakeLocalizer):
    """Remembers the priors; the second photograph cannot be localized."""

    def __init__(self):
        found = [PoseEstimate(np.eye(4) * k, '', np.eye(6), 9, 9, 1.0, source='splatted')
                 for k in (1, 2, 3, 4)]
        found[1] = PoseEstimate(None, 'nothing', None, 0, 9, float('nan'))
        super().__init__(found)
        self.priors = []

    def localize_and_refine(self, image, prior=None):
        self.priors.append(None if prior is None else prior[0, 0])
        return self.localize(image)


@pytest.mark.parametrize('track, expected', [
    (False, [None, None, None, None]), (True, [None, 1.0, None, 3.0])])
def test_a_track_looks_from_the_pose_before_and_nowhere_after_a_failure(tmp_path, track, expected):
    paths = []
    for k in range(4):
        picture = np.full((24, 32, 3), 128, np.uint8)
        picture[0, 0] = k
        paths.append(tmp_path / f'{k}.png')
        cv2.imwrite(str(paths[-1]), picture)
    localizer = Recorder()
    records = list(localize_files(localizer, paths, localizer.scene_map.cameras[0], track=track))
    assert localizer.priors == expected
    assert [record['source'] for record in records] == ['splatted', '', 'splatted', 'splatted']
