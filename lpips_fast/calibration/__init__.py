"""Learns the linear weights of LPIPS from human judgements.

`training` takes the steps, `features` caches what a frozen trunk gives, `ranking` turns distances into a judgement.
"""

from lpips_fast.calibration.features import FeatureCache
from lpips_fast.calibration.training import Calibration, Recipe, Step

__all__ = ["Calibration", "FeatureCache", "Recipe", "Step"]
