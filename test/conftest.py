"""Fixtures for all tests."""

from pathlib import Path
import zlib

from nerfmatch_ros.data.synthetic import SyntheticRoom
import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'


@pytest.fixture
def shared_data() -> Path:
    """Folder of real photographs beside the repository; without it the test is skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f'no real photographs at {SHARED_DATA}')
    return SHARED_DATA


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers seeded from the test's name."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope='session')
def engine():
    """The engine of trainings, on one process of the CPU."""
    from nerfmatch_ros.mapping.engine import make_engine
    return make_engine('cpu')


@pytest.fixture(scope='session')
def room() -> SyntheticRoom:
    """The synthetic room, textured."""
    return SyntheticRoom()


@pytest.fixture(scope='session')
def tiny_map(room: SyntheticRoom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole map of the room, too small to localize well; leave it as it is."""
    from nerfmatch_ros.mapping.build_map import build_map
    from tiny_build import TINY, tiny_images
    folder = tmp_path_factory.mktemp('tiny') / 'map'
    build_map(tiny_images(room), folder, TINY)
    return folder
