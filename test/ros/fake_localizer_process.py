"""The real localizer node as a process; the name of the map says how its backend behaves."""

import sys
import time

from fake_backend import FakeBackend, loader
from nerfmatch_ros.ros import managed_node
from nerfmatch_ros.ros.localizer_node import main


class AnnouncedBackend(FakeBackend):
    """Says when it is called; `endless`: does not return."""

    def __init__(self, endless):
        super().__init__()
        self.endless = endless

    def localize(self, image, prior=None):
        print('inference begins', flush=True)
        while self.endless:
            time.sleep(0.05)
        return super().localize(image, prior)


def load(map_folder, **options):
    print('loading begins', flush=True)
    while map_folder.name == 'endless_load':
        time.sleep(0.05)
    if map_folder.name == 'endless_patience':
        managed_node.LAST_PATIENCE = 3600.0
    return loader(AnnouncedBackend(map_folder.name in ('endless_frames', 'endless_patience')))(
        map_folder, **options)


if __name__ == '__main__':
    sys.exit(main(load=load))
