"""
Writes photographs of the synthetic room, from which `make demo-map` builds the demo's map.

    python tools/make_demo_room.py FOLDER

The 40 test images are those of the demo's drive; training never reads them.
"""

from pathlib import Path
import sys

from nerfmatch_ros.data.synthetic import default_camera, write_dataset

MAP_IMAGES, QUERY_IMAGES = 150, 40

if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(f'usage: {sys.argv[0]} FOLDER')
    print(write_dataset(Path(sys.argv[1]), MAP_IMAGES, QUERY_IMAGES, default_camera()))
