"""The matcher that a configuration describes."""

from nerfmatch_ros.matching.matcher import MatcherConfig, NeRFMatcher
from nerfmatch_ros.matching.paper_matcher import PaperMatcher

Matcher = NeRFMatcher | PaperMatcher


def make_matcher(config: MatcherConfig, feature_channels: int) -> Matcher:
    """Make an untrained matcher for points with `feature_channels` inner features."""
    kind = PaperMatcher if config.kind == 'paper' else NeRFMatcher
    return kind(config, feature_channels)
