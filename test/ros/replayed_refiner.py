"""The real refiner node around the backend that reads the truth off the pictures."""

import sys

from fake_backend import FakeBackend, loader
from nerfmatch_ros.ros.refiner_node import main

if __name__ == '__main__':
    sys.exit(main(load=loader(FakeBackend(refined_noise=0.003))))
