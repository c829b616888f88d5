"""Reference views that hold the matcher's tokens in place of the field's features.

Where points of a view attend to one another their encoding is the dearest part of matching with
them, and no image changes it: it is done here, once. Tokens are stored in half precision, as
features are, but those of the authors' checkpoints in full: rounding them changes one match in a
hundred, and the published matches are what these maps are for.
"""

from dataclasses import dataclass, replace

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping.reference_store import StoredView
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.matching.make_matcher import Matcher
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.references import References
from nerfmatch_ros.scene_map import encode_points, points_attend
import torch
from torch import Tensor


@dataclass(frozen=True)
class EncodedView:
    """A reference view whose `features` are tokens, encoded when they are asked for."""

    view: ReferenceView | StoredView
    matcher: Matcher
    frame: SceneFrame
    kind: torch.dtype

    @property
    def points(self) -> Tensor:
        """Points (N, 3), map frame, metres."""
        return self.view.points

    @property
    def features(self) -> Tensor:
        """Tokens (N, C) as they are stored, on the CPU; raises DataError for no numbers."""
        device = next(self.matcher.parameters()).device
        with torch.no_grad():
            tokens = encode_points(self.matcher, self.frame, self.view.points.to(device),
                                   self.view.features.to(device)).coarse.to(self.kind).cpu()
        if not tokens.isfinite().all():
            raise DataError(f"the matcher's tokens of reference view {self.view.name} are no "
                            f'numbers of {self.kind}; train the matcher anew')
        return tokens


def with_tokens(references: References, matcher: Matcher, frame: SceneFrame) -> References:
    """Give stored views that hold tokens where a matcher lets points attend, else as they are.

    matcher: on any device, for inference; its attention within a view is over all its points.
    """
    if not points_attend(matcher.config):
        return references
    kind = torch.float32 if matcher.config.official else torch.float16
    views = [EncodedView(view, matcher, frame, kind) for view in references.stored]
    return replace(references, stored=views, holds='tokens')
