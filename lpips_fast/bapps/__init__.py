"""Human judgements of image patches: data sets laid out as BAPPS (Zhang et al., CVPR 2018), and small synthetic ones.

    ROOT/2afc/SUBSET/{ref,p0,p1}/NAME.png, ROOT/2afc/SUBSET/judge/NAME.npy
    ROOT/jnd/SUBSET/{p0,p1}/NAME.png, ROOT/jnd/SUBSET/same/NAME.npy

The name of a subset is its folders: 'train/cnn', 'val/traditional'.
"""

from lpips_fast.bapps.datasets import PATCH, JNDDataset, Pair, SampleError, Triplet, TwoAFCDataset, list_subsets
from lpips_fast.bapps.loading import read_batches
from lpips_fast.bapps.scores import evaluate, score_2afc, score_jnd
from lpips_fast.bapps.synthesize import give_taste, synthesize

__all__ = [
    "PATCH",
    "JNDDataset",
    "Pair",
    "SampleError",
    "Triplet",
    "TwoAFCDataset",
    "evaluate",
    "give_taste",
    "list_subsets",
    "read_batches",
    "score_2afc",
    "score_jnd",
    "synthesize",
]
