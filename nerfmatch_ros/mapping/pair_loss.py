"""What a training step of the published matcher minimises."""

from nerfmatch_ros.mapping.pair_dataset import PairGroup
from nerfmatch_ros.matching.coarse_matching import log_dual_softmax
from nerfmatch_ros.matching.matcher import cell_centres, COARSE_STRIDE
from nerfmatch_ros.matching.paper_loss import (
    distance_loss,
    focal_loss,
    log_loss,
    matches_to_learn,
    near_its_cell,
    Pairs,
    squared_distance_loss,
    true_pairs,
)
from nerfmatch_ros.matching.paper_matcher import PaperMatcher
import numpy as np
import torch
from torch import nn, Tensor

CLAMP = 1e-6  # of the full model's probabilities, as released


class PairLoss(nn.Module):
    """Coarse and fine loss of a group of pairs: 'focal' as released, 'log' as in the paper."""

    def __init__(self, matcher: PaperMatcher, *, kind: str, bfloat16: bool = True):
        super().__init__()
        self.matcher, self.kind, self.bfloat16 = matcher, kind, bfloat16

    def forward(self, group: PairGroup, matches: Pairs | None = None) -> Tensor:
        """Give both losses (2,); the networks run in bfloat16, scores and losses do not.

        matches: that the fine stage learns from; None: predicted and true ones, drawn.
        """
        matcher = self.matcher
        device = matcher.temperature.device
        scores, attended, maps = [], [], []
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            for pair, (tokens, fine) in zip(group.pairs, self._encode_images(group, device)):
                points = matcher.encode_points(pair.points.to(device), pair.features.to(device))
                cells, seen = matcher.interact(tokens, points.coarse)
                with torch.autocast(device.type, enabled=False):
                    scores.append(log_dual_softmax(matcher.similarity(cells, seen)))
                attended.append(seen)
                maps.append(fine)
        pixels = [pair.pixels.to(device) for pair in group.pairs]
        visible = [pair.visible.to(device) for pair in group.pairs]
        grids = [tuple(side // COARSE_STRIDE for side in pair.image.shape[-2:])
                 for pair in group.pairs]
        truth = true_pairs(pixels, visible, grids, COARSE_STRIDE)
        if self.kind == 'focal':
            coarse = focal_loss(scores, truth, clamp=CLAMP if matcher.config.fine else None)
        else:
            coarse = log_loss(scores, truth)
        if not matcher.config.fine:
            return torch.stack([coarse, torch.zeros_like(coarse)])
        if matches is None:
            matches, _ = matches_to_learn(_best_of_each_cell(scores), truth,
                                          sum(map(len, scores)), np.random.default_rng(group.seed))
        found, std, places, near = ([] for _ in range(4))
        for k, (_, columns) in enumerate(grids):
            own = matches.image == k
            cells, points = matches.cell[own], matches.point[own]
            centres = cell_centres(cells, columns)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
                windows, middles = matcher.windows(maps[k], cells)
                place = matcher.locate(windows, attended[k][points])
            at, spread = matcher.fine_pixels(place, cells, middles, columns)
            found.append(at)
            std.append(spread)
            places.append(pixels[k][points])
            near.append(visible[k][points] & near_its_cell(places[-1], centres))
        fine_loss = squared_distance_loss if self.kind == 'focal' else distance_loss
        fine = fine_loss(*(torch.cat(parts) for parts in (found, std, places, near)))
        return torch.stack([coarse, fine])

    def _encode_images(self, group: PairGroup, device: torch.device,
                       ) -> list[tuple[Tensor, Tensor | None]]:
        """Give tokens (n, C) and the fine map (1, Cf, H/2, W/2) of each image."""
        images = [pair.image.to(device) for pair in group.pairs]
        # Together they are quicker on a GPU; on a CPU they would only take more memory.
        if device.type == 'cpu' or len({image.shape for image in images}) > 1:
            encoded = [self.matcher.encode_images(image[None]) for image in images]
            return [(tokens[0], fine) for tokens, fine in encoded]
        tokens, fine = self.matcher.encode_images(torch.stack(images))
        return list(zip(tokens.unbind(0), [None] * len(images) if fine is None else fine.split(1)))


def _best_of_each_cell(scores: list[Tensor]) -> Pairs:
    """Pair each cell with the point it likes best, as the published training does."""
    return Pairs(*(torch.cat(parts) for parts in zip(*(
        (torch.full_like(best, k), torch.arange(len(best), device=best.device), best)
        for k, best in enumerate(score.detach().argmax(1) for score in scores)))))
