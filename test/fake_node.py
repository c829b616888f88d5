"""The localizer node around a localizer that answers from a table; run with `python -m`."""

import sys

from fake_localizer import circle, estimate, FakeLocalizer
from nerfmatch_ros.ros.localizer_node import main


def load(map_folder, *, device, threads):
    """Fail for image 1 and for the picture of noise that warms up; else give the exact pose."""
    if map_folder.name == 'broken':
        raise RuntimeError('the map is broken')
    answers = {index: estimate(pose) for index, pose in enumerate(circle(4))}
    answers[1] = estimate(None, reason='too few matches')
    fake = FakeLocalizer(answers)
    fake.answers = type('Answers', (dict,), {
        '__missing__': lambda self, index: answers[1]})(answers)
    return fake


if __name__ == '__main__':
    sys.exit(main(load=load))
