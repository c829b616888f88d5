"""A field that was trained elsewhere, in place of the one that a build would train."""

from collections.abc import Sequence
from dataclasses import replace
import logging
from pathlib import Path
from typing import Any

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.field_file import FieldFile
from nerfmatch_ros.files import written_atomically
from nerfmatch_ros.mapping.build_config import BuildConfig
from nerfmatch_ros.mapping.field_quality import compare_with_photographs
from nerfmatch_ros.mapping.training_pixels import PixelSize
from nerfmatch_ros.matching.matcher import MatcherConfig
import numpy as np

LOG = logging.getLogger(__name__)
TRAINABLE = ('grid', 'mip')
LEAST_GAIN = 1.0  # dB over a picture of the mean colour; a fifth of the variance is explained


def with_field(config: BuildConfig, given: FieldFile | None) -> BuildConfig:
    """Give the options of a build on this field; None: of one that trains its own.

    A matcher that was not told which inner feature to match takes the deepest one, where the
    field has fewer layers than the default. Raises ConfigError for a field nothing here trains.
    """
    if given is None:
        if config.field.kind not in TRAINABLE:
            raise ConfigError(f"field kind '{config.field.kind}' is not trained here; use "
                              f"{' or '.join(TRAINABLE)}, or give an imported field by --field")
        return config
    matcher, layers = config.matcher, given.field.feature_layers
    if matcher.point_feature == MatcherConfig.point_feature \
            and (matcher.feature_layer or 0) > layers:
        LOG.info('the field has %d inner layers: f%d is matched, not %s', layers, layers,
                 matcher.point_feature)
        matcher = replace(matcher, point_feature=f'f{layers}')
    return replace(config, field=given.config, matcher=matcher)


def likeness(
    given: FieldFile, images: Sequence[PosedImage], how: PixelSize, picture: Path,
) -> dict[str, Any]:
    """Draw photographs beside the field's renders, and note its origin and its PSNR, dB.

    Photographs that the matcher will not see may well have trained the field. A field that shows
    them hardly better than their mean colours would, its exposure fitted, is warned of.
    """
    shown = compare_with_photographs(given.field, given.frame, list(images), how)
    with written_atomically(picture) as temporary:
        cv2.imwrite(str(temporary), shown.picture[..., ::-1])
    psnr = float(np.mean(shown.psnr))
    plain = float(np.mean([plain_psnr(image.rgb()) for image in images]))
    if psnr < plain + LEAST_GAIN:
        LOG.warning('the field given renders the photographs at %.1f dB, pictures of nothing but '
                    'their mean colour reach %.1f dB; are their poses in the frame that it was '
                    'trained in?', psnr, plain)
    return {'field_source': given.source, 'photograph_psnr_db': psnr}


def plain_psnr(picture: np.ndarray) -> float:
    """PSNR, dB, that the mean colour of a picture (H, W, 3) uint8 reaches."""
    return float(-10 * np.log10(max((picture / 255).var(axis=(0, 1)).mean(), 1e-10)))
