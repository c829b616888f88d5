"""The real localizer node around the backend that reads the truth off the pictures."""

import sys

from fake_backend import FakeBackend, loader
from nerfmatch_ros.ros.localizer_node import main

if __name__ == '__main__':
    sys.exit(main(load=loader(FakeBackend(noise=0.03))))
