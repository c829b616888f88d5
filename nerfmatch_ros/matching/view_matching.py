"""Matching one image with several views of a map."""

from collections.abc import Sequence

from nerfmatch_ros.matching.coarse_matching import CoarseMatches
from nerfmatch_ros.matching.make_matcher import Matcher
from nerfmatch_ros.matching.matcher import ImageTokens, PointTokens
from nerfmatch_ros.matching.paper_matcher import PaperMatcher


def match_views(
    matcher: Matcher, image: ImageTokens, views: Sequence[PointTokens],
) -> list[CoarseMatches]:
    """Match an image with the points of each view.

    Views of one size go through the attention of the published network as one batch on a GPU,
    which a single view does not fill. A CPU gains nothing by that and takes them one by one.
    """
    if isinstance(matcher, PaperMatcher) and image.coarse.is_cuda and len(views) > 1 \
            and len({view.coarse.shape for view in views}) == 1:
        return matcher.match_together(image, views)
    return [matcher.match_coarse(image, view) for view in views]
