"""Learning the linear weights of LPIPS from human judgements."""

from lpips_fast.calibration.features import FeatureCache
from lpips_fast.calibration.training import Calibration, Recipe, Step

__all__ = ["Calibration", "FeatureCache", "Recipe", "Step"]
