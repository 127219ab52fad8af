"""Which object an anchor or a proposal is trained to find."""

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher


class BoxMatcher(Matcher):
    """Matches boxes with objects as torchvision does.

    It writes under masks where torchvision makes lists of indices, for which a GPU is waited for.
    """

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """Return for each box the index of its object, or torchvision's negative numbers (N,).

        Args:
            match_quality_matrix: the IoU of each object with each box, (M, N).
        """
        if not match_quality_matrix.numel():
            super().__call__(match_quality_matrix)  # raises torchvision's error
        values, best = match_quality_matrix.max(dim=0)
        matches = best.masked_fill(values < self.high_threshold, self.BETWEEN_THRESHOLDS)
        matches.masked_fill_(values < self.low_threshold, self.BELOW_LOW_THRESHOLD)
        if not self.allow_low_quality_matches:
            return matches
        best_values = match_quality_matrix.amax(dim=1, keepdim=True)
        is_best = (match_quality_matrix == best_values).any(dim=0)
        return torch.where(is_best, best, matches)
