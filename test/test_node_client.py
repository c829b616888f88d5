import os
from pathlib import Path

from nerfmatch_ros.errors import NerfmatchError
import numpy as np
import pytest

pytest.importorskip('rclpy')

from fake_localizer import circle, queries  # noqa: E402
from nerfmatch_ros.ros.node_client import NodeClient  # noqa: E402


@pytest.fixture
def node(monkeypatch, tmp_path):
    """Give a function from a map's name to a client of the node in fake_node.py."""
    paths = [str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, paths)))
    return lambda name: NodeClient(
        tmp_path / name, tmp_path / 'node.log', module='fake_node',
        parameters={'tf_broadcast': 'false'})


def test_images_go_out_and_poses_with_covariance_come_back(node, tmp_path):
    images = queries(4)
    with node('map') as client:
        answers = [client.localize(image, timeout=2.0 if index == 1 else 20.0)
                   for index, image in enumerate(images)]
    for index in (0, 2, 3):
        np.testing.assert_allclose(answers[index].map_from_camera, circle(4)[index], atol=1e-12)
        assert answers[index].position_std == pytest.approx(0.01)
    assert answers[1].map_from_camera is None and 'no pose within 2 s' in answers[1].reason
    assert 'too few matches' in (tmp_path / 'node.log').read_text()


def test_node_that_cannot_start_is_reported_with_its_last_lines(node):
    with pytest.raises(NerfmatchError, match=r'(?s)ended with code 1.*the map is broken'):
        with node('broken'):
            pytest.fail('entered without a node')
