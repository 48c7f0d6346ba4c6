"""Learning the linear weights of LPIPS from human judgements."""

from .features import FeatureCache
from .training import Calibration, Recipe, Step

__all__ = ["Calibration", "FeatureCache", "Recipe", "Step"]
