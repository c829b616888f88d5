"""Textures for the synthetic room: drawn from a seed, rich at every scale, nowhere repeated.

A texture is a picture (H, W, 3) float32 in 0..255 of a face's real size at `TEXELS_PER_METRE`.
`TextureAtlas` holds all of them with their mip levels and looks points up in one go.
"""

from collections.abc import Callable
import math

import cv2
import numpy as np

TEXELS_PER_METRE = 200
_MIP_LEVELS = 7


class TextureAtlas:
    """All textures, each with its levels of half resolution, in one flat array."""

    def __init__(self, textures: list[np.ndarray]):
        """Build the levels of the textures; a face is named by its index in the list."""
        pieces, self._sizes, self._offsets = [], [], []
        offset = 0
        for texture in textures:
            sizes, offsets = [], []
            level = np.clip(texture, 0, 255)
            for _ in range(_MIP_LEVELS):
                height, width = level.shape[:2]
                sizes.append((width, height))
                offsets.append(offset)
                pieces.append(np.rint(level).astype(np.uint8).reshape(-1, 3))
                offset += width * height
                half = (max(1, (width + 1) // 2), max(1, (height + 1) // 2))
                level = cv2.resize(level, half, interpolation=cv2.INTER_AREA)
            self._sizes.append(sizes)
            self._offsets.append(offsets)
        self._texels = np.concatenate(pieces)
        self._sizes = np.array(self._sizes)  # (faces, levels, 2)
        self._offsets = np.array(self._offsets)  # (faces, levels)

    def look_up(self, face: np.ndarray, place: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Give colours (N, 3), 0..255, smoothed to the size of a pixel on the surface.

        face: (N,) index; place: (N, 2) across and down, 0..1; footprint: (N,) metres.
        """
        level = np.log2(np.maximum(footprint * TEXELS_PER_METRE, 1.0))
        level = np.minimum(level, _MIP_LEVELS - 1.001)
        lower = level.astype(np.int64)
        part = (level - lower).astype(np.float32)[:, None]
        return (1 - part) * self._bilinear(face, lower, place) \
            + part * self._bilinear(face, lower + 1, place)

    def _bilinear(self, face: np.ndarray, level: np.ndarray, place: np.ndarray) -> np.ndarray:
        size = self._sizes[face, level]
        position = np.clip(place * size - 0.5, 0, size - 1)
        corner = np.minimum(position.astype(np.int64), np.maximum(size - 2, 0))
        x, y = (position - corner).astype(np.float32).T[..., None]
        width = size[:, 0]
        right = (width > 1).astype(np.int64)
        down = np.where(size[:, 1] > 1, width, 0)
        first = self._offsets[face, level] + corner[:, 1] * width + corner[:, 0]
        texels = self._texels
        above = texels[first] * (1 - x) + texels[first + right] * x
        below = texels[first + down] * (1 - x) + texels[first + down + right] * x
        return above * (1 - y) + below * y


def draw(kind: str, width: float, height: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the texture of a face of the given kind; width and height in metres."""
    columns = max(4, round(width * TEXELS_PER_METRE))
    rows = max(4, round(height * TEXELS_PER_METRE))
    # Print is never sharper than a texel, and steps at its edges would look like corners.
    return cv2.GaussianBlur(_KINDS[kind](rows, columns, rng).astype(np.float32), (3, 3), 0.7)


def _noise(rows: int, columns: int, rng: np.random.Generator, coarsest: float) -> np.ndarray:
    """Sum octaves of smooth noise (rows, columns), about -1..1; coarsest: texels a cell."""
    total = np.zeros((rows, columns), np.float32)
    cell, weight, weights = coarsest, 1.0, 0.0
    while cell >= 1.5:
        grid = rng.standard_normal((int(rows / cell) + 2, int(columns / cell) + 2))
        full = (int(grid.shape[1] * cell), int(grid.shape[0] * cell))
        octave = cv2.resize(grid.astype(np.float32), full, interpolation=cv2.INTER_CUBIC)
        total += weight * octave[:rows, :columns]
        weights += weight * weight
        cell, weight = cell / 2, weight * 0.75
    return np.clip(total / (1.5 * math.sqrt(weights)), -1, 1)


def _colour(rng: np.random.Generator, saturation=(0.2, 0.85), value=(0.25, 1.0)) -> np.ndarray:
    """Draw a colour (3,), 0..255."""
    hue, s, v = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(*value)
    weights = np.clip(np.abs((hue + np.array((0, 4, 2))) % 6 - 3) - 1, 0, 1)
    return (255 * v * (1 - s * (1 - weights))).astype(np.float32)


def _plain(rows: int, columns: int, rng: np.random.Generator, colour, strength: float):
    """Fill with a colour, made uneven by noise at all scales."""
    shade = 1 + strength * _noise(rows, columns, rng, 128)
    tint = np.stack([_noise(rows, columns, rng, 64) for _ in range(3)], axis=-1)
    return colour * shade[..., None] + 60 * strength * tint


def _paint(canvas: np.ndarray, function: Callable, *places, colour, **options):
    function(canvas, *places, color=tuple(float(c) for c in colour), lineType=cv2.LINE_AA,
             **options)


def _discs(canvas: np.ndarray, rng: np.random.Generator, count: int, largest: float):
    rows, columns = canvas.shape[:2]
    for _ in range(count):
        centre = (int(rng.uniform(0, columns)), int(rng.uniform(0, rows)))
        radius = max(1, int(largest * rng.uniform(0.15, 1)))
        thickness = -1 if rng.random() < 0.6 else max(1, radius // 4)
        _paint(canvas, cv2.circle, centre, radius, colour=_colour(rng), thickness=thickness)


def _rectangles(canvas: np.ndarray, rng: np.random.Generator, count: int, largest: float):
    rows, columns = canvas.shape[:2]
    for _ in range(count):
        centre = (rng.uniform(0, columns), rng.uniform(0, rows))
        size = largest * rng.uniform(0.15, 1, 2)
        corners = cv2.boxPoints((centre, tuple(size), rng.uniform(0, 90))).astype(np.int32)
        _paint(canvas, cv2.fillConvexPoly, corners, colour=_colour(rng))


def _lines(canvas: np.ndarray, rng: np.random.Generator, count: int):
    rows, columns = canvas.shape[:2]
    for _ in range(count):
        ends = rng.uniform(0, 1, (2, 2)) * (columns, rows)
        first, second = ends.astype(int).tolist()
        _paint(canvas, cv2.line, first, second, colour=_colour(rng),
               thickness=int(rng.integers(1, 5)))


def _writing(canvas: np.ndarray, rng: np.random.Generator, letter: int):
    """Fill with lines of invented letters, each a few strokes on a grid of 3 x 4 points."""
    rows, columns = canvas.shape[:2]
    colour = _colour(rng, value=(0.0, 0.5))
    y = letter // 2
    while y + letter < rows:
        x = letter // 2
        end = columns * rng.uniform(0.5, 1)
        while x + letter < end:
            if rng.random() < 0.85:
                grid = rng.integers(0, (3, 4), (int(rng.integers(3, 6)), 2))
                strokes = (grid * letter * (0.35, 0.28) + (x, y)).astype(np.int32)
                _paint(canvas, cv2.polylines, [strokes], False, colour=colour,
                       thickness=max(1, letter // 7))
            x += int(letter * rng.uniform(0.9, 1.15))
        y += int(letter * 1.5)


def _poster(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a poster: a frame around discs, rectangles, writing, stripes or a landscape."""
    small = min(rows, columns)
    canvas = np.ascontiguousarray(
        _plain(rows, columns, rng, _colour(rng, (0.1, 0.8), (0.5, 1)), 0.1), np.float32)
    style = rng.integers(5)
    if style == 0:
        _discs(canvas, rng, 14, small / 4)
    elif style == 1:
        _rectangles(canvas, rng, 18, small / 3)
    elif style == 2:
        _writing(canvas, rng, max(8, int(small * rng.uniform(0.08, 0.2))))
    elif style == 3:
        angle, wave = rng.uniform(0, math.pi), _noise(rows, columns, rng, small / 2)
        y, x = np.mgrid[:rows, :columns] / small
        phase = 14 * (x * math.cos(angle) + y * math.sin(angle)) + 6 * wave
        canvas = np.where(np.sin(phase)[..., None] > 0, canvas, _colour(rng)).astype(np.float32)
        _discs(canvas, rng, 4, small / 5)
    else:
        height = _noise(rows, columns, rng, small / 2)
        levels = np.stack([_colour(rng) for _ in range(7)])
        canvas = levels[np.clip((height * 4 + 3.5).astype(int), 0, 6)]
        _lines(canvas, rng, 5)
    if rng.random() < 0.5:
        title = canvas[-rows // 5:]
        title[:] = _colour(rng, (0, 0.4), (0.7, 1))
        _writing(title, rng, max(6, rows // 9))
    edge = max(1, small // 40)
    _paint(canvas, cv2.rectangle, (0, 0), (columns - 1, rows - 1),
           colour=_colour(rng, (0, 0.5), (0, 0.6)), thickness=2 * edge)
    return canvas


def _hang_posters(wall: np.ndarray, rng: np.random.Generator, attempts: int, sizes, gap: int):
    """Paste posters where they do not overlap; sizes: smallest and largest, texels."""
    rows, columns = wall.shape[:2]
    taken = np.zeros((rows, columns), bool)
    for attempt in range(attempts):
        largest = sizes[1] + (sizes[0] - sizes[1]) * attempt / attempts
        height, width = (int(largest * rng.uniform(0.7, 1.3)) for _ in range(2))
        if height + 2 * gap >= rows or width + 2 * gap >= columns:
            continue
        y = int(rng.integers(gap, rows - height - gap))
        x = int(rng.integers(gap, columns - width - gap))
        if taken[y - gap:y + height + gap, x - gap:x + width + gap].any():
            continue
        taken[y:y + height, x:x + width] = True
        wall[y:y + height, x:x + width] = _poster(height, width, rng)


def _wall(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    wall = _plain(rows, columns, rng, _colour(rng, (0.1, 0.35), (0.7, 0.9)), 0.12)
    wall = np.ascontiguousarray(wall, np.float32)
    _discs(wall, rng, rows * columns // 5000, 4)
    _lines(wall, rng, 12)
    _hang_posters(wall[:int(rows * 0.93)], rng, 260, (30, 170), 6)
    skirting = wall[int(rows * 0.955):]
    skirting[:] = _plain(*skirting.shape[:2], rng, _colour(rng, (0.3, 0.6), (0.3, 0.5)), 0.3)
    return wall


def _planks(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Draw boards of different wood side by side, with grain and knots."""
    floor = np.empty((rows, columns, 3), np.float32)
    top = 0
    while top < rows:
        bottom = min(rows, top + int(rng.integers(20, 34)))
        left = -int(rng.integers(0, 150))
        while left < columns:
            right = min(columns, left + int(rng.integers(90, 260)))
            floor[top:bottom, max(0, left):right] = (
                np.array((150, 108, 70)) * rng.uniform(0.6, 1.35) + rng.uniform(-14, 14, 3))
            floor[top:bottom, max(0, right - 2):right] *= 0.45
            left = right
        floor[bottom - 2:bottom] *= 0.45
        top = bottom
    grain = cv2.resize(_noise(rows, columns // 8 + 2, rng, 24), (columns, rows))
    floor *= 1 + 0.3 * grain[..., None] + 0.2 * _noise(rows, columns, rng, 256)[..., None]
    for _ in range(rows * columns // 6000):
        place = (int(rng.uniform(0, columns)), int(rng.uniform(0, rows)))
        axes = (int(rng.integers(2, 8)), int(rng.integers(1, 4)))
        _paint(floor, cv2.ellipse, place, axes, 0, 0, 360,
               colour=np.array((70, 45, 28)) * rng.uniform(0.6, 1.5), thickness=-1)
    return floor


def _floor(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Draw boards with rugs and things dropped on them."""
    floor = _planks(rows, columns, rng)
    for y, x, height, width in ((.08, .05, .34, .36), (.55, .5, .36, .42), (.1, .62, .3, .3),
                                (.6, .08, .3, .3)):
        y, height = int(y * rows), int(height * rows)
        x, width = int(x * columns), int(width * columns)
        rug = np.ascontiguousarray(_plain(height, width, rng, _colour(rng, (0.3, 0.7)), 0.2),
                                   np.float32)
        for draw_on in (_rectangles, _discs):
            draw_on(rug, rng, 22, 50)
        _lines(rug, rng, 14)
        _paint(rug, cv2.rectangle, (4, 4), (width - 5, height - 5), colour=_colour(rng),
               thickness=6)
        floor[y:y + height, x:x + width] = rug + 18 * rng.standard_normal((height, width, 1))
    _hang_posters(floor, rng, 40, (16, 50), 2)
    return floor


def _ceiling(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Draw panels of different tint with stains, beams and two lamps."""
    ceiling = np.ascontiguousarray(
        _plain(rows, columns, rng, np.array((215, 212, 205)), 0.12), np.float32)
    for y in range(0, rows, 120):
        for x in range(0, columns, 120):
            panel = ceiling[y:y + 118, x:x + 118]
            panel *= rng.uniform(0.72, 1.08, 3)
            _lines(panel, rng, int(rng.integers(0, 3)))
            _discs(panel, rng, int(rng.integers(0, 4)), 14)
            ceiling[y + 118:y + 120, x:x + 120] *= 0.5
            ceiling[y:y + 120, x + 118:x + 120] *= 0.5
    _hang_posters(ceiling, rng, 40, (30, 110), 4)
    for x in (0.25, 0.75):
        place = (int(x * columns), rows // 2)
        _paint(ceiling, cv2.circle, place, 44, colour=(255, 252, 235), thickness=-1)
        _paint(ceiling, cv2.circle, place, 46, colour=(90, 90, 95), thickness=4)
    return ceiling


def _wood(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one board with grain, scratches and a few stickers."""
    grain = cv2.resize(_noise(rows, max(4, columns // 8), rng, 32), (columns, rows))
    base = np.array((168, 120, 76)) * rng.uniform(0.6, 1.2) + rng.uniform(-20, 20, 3)
    board = base * (1 + 0.3 * grain[..., None]) + 20 * _noise(rows, columns, rng, 40)[..., None]
    board = np.ascontiguousarray(board, np.float32)
    if min(rows, columns) >= 24:
        _lines(board, rng, 1 + rows * columns // 8000)
        _discs(board, rng, rows * columns // 2500, 6)
        _hang_posters(board, rng, 25, (16, min(60, min(rows, columns) // 2)), 2)
    return board


def _shelf(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows of books of different height, colour and lettering."""
    shelf = _wood(rows, columns, rng) * 0.4
    boards = max(1, round(rows / 75))
    for board in range(boards):
        bottom = round((board + 1) * rows / boards) - 5
        room = rows // boards - 10
        x = 4
        while x < columns - 8:
            width = min(int(rng.integers(6, 18)), columns - 4 - x)
            height = int(room * rng.uniform(0.6, 1.0))
            book = np.empty((max(2, height), width, 3), np.float32)
            book[:] = _colour(rng)
            book *= 1 + 0.15 * _noise(*book.shape[:2], rng, 16)[..., None]
            for _ in range(3):
                y = int(rng.uniform(0, height - 4))
                book[y:y + int(rng.integers(2, 12)), 1:-1] = _colour(rng)
            shelf[max(0, bottom - len(book)):bottom, x:x + width] = book[-bottom:]
            x += width + int(rng.random() < 0.2) * int(rng.integers(2, 12))
    return shelf


def _fabric(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Draw printed cloth."""
    cloth = np.ascontiguousarray(_plain(rows, columns, rng, _colour(rng, (0.3, 0.8)), 0.25),
                                 np.float32)
    _discs(cloth, rng, 4 + rows * columns // 900, 13)
    _rectangles(cloth, rng, 2 + rows * columns // 1800, 18)
    return cloth + 10 * rng.standard_normal((rows, columns, 1))


def _carton(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a box of cardboard or tin with print, labels and tape."""
    carton = np.ascontiguousarray(_plain(rows, columns, rng, _colour(rng, (0.2, 0.7)), 0.15),
                                  np.float32)
    _lines(carton, rng, 4)
    _rectangles(carton, rng, 5, min(rows, columns) / 3)
    _writing(carton[rows // 3:], rng, max(6, min(rows, columns) // 6))
    if min(rows, columns) >= 30:
        _hang_posters(carton, rng, 12, (12, min(rows, columns) // 2), 1)
    return carton


_KINDS = {'wall': _wall, 'floor': _floor, 'ceiling': _ceiling, 'wood': _wood, 'shelf': _shelf,
          'fabric': _fabric, 'carton': _carton, 'poster': _poster}
