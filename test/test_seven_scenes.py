"""7-Scenes as distributed: sequences of the splits, names, rough poses."""

import cv2
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

POSE = np.eye(4)
POSE[:3, :3] = Rotation.from_rotvec((0.2, 0.9, -0.3)).as_matrix()
POSE[:3, 3] = (0.5, -0.25, 1.5)


def dataset(folder, poses=(POSE, POSE), train='sequence1\nsequence12\n', test='sequence3\n'):
    """Write two frames for each sequence with the given poses, depth beside them."""
    for number in (1, 3, 12):
        sequence = folder / f'seq-{number:02d}'
        sequence.mkdir()
        for index, pose in enumerate(poses):
            cv2.imwrite(str(sequence / f'frame-{index:06d}.color.png'),
                        np.full((480, 640), 9, np.uint8))
            cv2.imwrite(str(sequence / f'frame-{index:06d}.depth.png'),
                        np.full((480, 640), 1500, np.uint16))
            np.savetxt(sequence / f'frame-{index:06d}.pose.txt', pose, '%.7e\t')
    (folder / 'TrainSplit.txt').write_text(train)
    (folder / 'TestSplit.txt').write_text(test)
    return folder


def test_sequences_of_the_splits_are_read(tmp_path):
    images = read_posed_images(dataset(tmp_path))
    assert [image.name for image in images] == [
        f'seq-{s}/frame-00000{i}.color.png' for s in ('01', '03', '12') for i in (0, 1)]
    assert [image.split for image in images] == ['train'] * 2 + ['test'] * 2 + ['train'] * 2
    for image in images:
        assert image.camera == Camera('PINHOLE', 640, 480, 525, 525, 319.5, 239.5)
        np.testing.assert_allclose(image.map_from_camera, POSE, atol=1e-6)
        assert image.depth_map() is None  # that depth is of another camera
    assert len(read_posed_images(tmp_path, 'test')) == 2


def test_roughly_rigid_poses_are_repaired_and_lost_ones_refused(tmp_path):
    rough, lost = POSE.copy(), POSE.copy()
    rough[:3, :3] *= 1.004
    lost[:3, :3] *= 1.2
    images = read_posed_images(dataset(tmp_path, (rough, POSE)))
    for image in images:
        np.testing.assert_allclose(image.map_from_camera, POSE, atol=1e-6)
    np.savetxt(tmp_path / 'seq-03/frame-000001.pose.txt', lost)
    with pytest.raises(DataError, match='seq-03/frame-000001.pose.txt: no rotation'):
        read_posed_images(tmp_path)
    (tmp_path / 'seq-03/frame-000001.pose.txt').write_text('1 2 3')
    with pytest.raises(DataError, match='frame-000001.pose.txt is no pose of 4 x 4 numbers'):
        read_posed_images(tmp_path)


def test_wrong_lists_and_packed_sequences_are_named(tmp_path):
    with pytest.raises(DataError, match="TestSplit.txt, line 2: .*'seq three'"):
        read_posed_images(dataset(tmp_path, test='sequence3\nseq three\n'))
    (tmp_path / 'TestSplit.txt').write_text('sequence4\n')
    with pytest.raises(DataError, match='seq-04 has no frame.*unpack seq-04.zip'):
        read_posed_images(tmp_path)
    (tmp_path / 'TestSplit.txt').write_bytes(b'sequence\xff\n')
    with pytest.raises(DataError, match='cannot read .*TestSplit.txt'):
        read_posed_images(tmp_path)
