"""THE table of tolerances: every number that a test allows a result to be off by, and the reason for it.

The form says how the tolerance is measured.

- A pair (atol, rtol) is for `comparisons.assert_close`: |found - expected| <= atol * unit + rtol |expected| everywhere,
  where the unit is the largest |expected|, except for the head's values (1) and gradients (the largest of all layers).
- A dict is for `torch.testing.assert_close`: |found - expected| <= atol + rtol |expected| everywhere.
- A number is relative: to each expected number, or to the norm of the expected tensor. The comment says so where a
  number is absolute.

A tolerance is not loosened to make a test pass. Thresholds that are no tolerances, such as the least cosine between two
gradients or the most bytes that a forward keeps, stand in their tests.
"""

from __future__ import annotations

import torch

# --- LPIPS and the head against an oracle in float64, by the type of the images or features ---

# LPIPS against lpips 0.1.4. lpips itself in float32 is off by up to 4e-6 of the largest value of VGG's maps.
VALUE_TOLERANCE = {torch.float64: (1e-12, 1e-11), torch.float32: (1e-5, 1e-5)}

# The norm of the error of an image's gradient, relative to the gradient's norm. Where a ReLU or a pool is within
# rounding of a tie, float32 may decide otherwise, and the gradient jumps: by 3% for one of the 1024 values of a 1 x 2
# tap. lpips in float32 jumps, too. So up to half of the images may be off by such a jump, up to JUMP_TOLERANCE; an
# error in a formula puts off every image. In float64 no tie is that close, and every image must be within rounding.
GRAD_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
JUMP_TOLERANCE = 0.1

# The gradient of a function of the gradient: it has the rounding of both, and the jumps of the first.
SECOND_GRAD_TOLERANCE = (1e-3, 1e-3)

# The largest value of an image's gradient against the one that lpips 0.1.4 found: it is one value, and not a norm.
LARGEST_GRAD_TOLERANCE = {dtype: 20 * tolerance for dtype, tolerance in GRAD_TOLERANCE.items()}

# The scaling layer against ImageNet's statistics: lpips rounds them to 3 digits. Absolute.
SCALING_TOLERANCE = 3e-3

# Gradients to weights are sums over all pixels of all images; the trunk's have the jumps of the taps above them.
LINEAR_WEIGHT_GRAD_TOLERANCE = (1e-6, 1e-4)
TRUNK_WEIGHT_GRAD_TOLERANCE = (1e-4, 1e-3)

# `weight=` against the mean written out without the eps of the normalisation, in float64.
WITHOUT_EPS_TOLERANCE = {"atol": 1e-12, "rtol": 1e-7}

# The head against the reference on features rounded to the tested type. D and the maps are sums in float32, so only
# their rounding shows. Gradients to the features are rounded to the features' type. Triton's interpreter truncates
# float32 to bfloat16 where hardware rounds, so bfloat16 gradients have a whole ulp.
HEAD_VALUE_TOLERANCE = {
    torch.float64: (1e-14, 1e-11),
    torch.float32: (1e-8, 2e-5),
    torch.float16: (1e-8, 2e-5),
    torch.bfloat16: (1e-8, 2e-5),
}
HEAD_GRAD_TOLERANCE = {
    torch.float64: (1e-12, 1e-10),
    torch.float32: (2e-6, 5e-5),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (8e-3, 1.6e-2),
}

# The norm of the error of the gradient to a layer's features: rounding to the features' type.
HEAD_GRAD_NORM_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 8e-3}

# Distances between embeddings, absolute: they are at most about 1, and |a|^2 - 2ab + |b|^2 cancels. Near duplicates
# are computed from a - b instead, relative to the distance. In 16 bits a trunk's rounding varies with its batch.
# TILE_TOLERANCE is for tiles, and for embeddings compared in float64.
PAIRWISE_TOLERANCE = {torch.float64: 1e-14, torch.float32: 5e-7, torch.float16: 2e-3, torch.bfloat16: 2e-3}
TILE_TOLERANCE = 3e-7
NEAR_DUPLICATE_TOLERANCE = 1e-3

# Distances that an index finds, by the type that it keeps embeddings in; and the embeddings themselves in float16.
INDEX_TOLERANCE = {torch.float32: {"atol": 1e-7, "rtol": 1e-3}, torch.float16: {"atol": 1e-5, "rtol": 1e-3}}
INDEX_EMBEDDING_TOLERANCE = {"atol": 1e-3, "rtol": 1e-3}

# Sketches in float16 of vectors that were rounded to float16 before.
SKETCH_OF_FLOAT16_TOLERANCE = {"atol": 5e-3, "rtol": 1e-3}

# What an index in float16 changes of a distance d, relative to sqrt(d): the median, which `Index.build` states, and the
# most.
INDEX_FLOAT16_MEDIAN_TOLERANCE = 1.5e-5
INDEX_FLOAT16_TOLERANCE = 1e-4

# Mean distances, relative, against the mean of the distances of the same embeddings: sums in float64. And the standard
# error from sketches, against that of all distances; and against the deviation of the means of many samples.
MEAN_DISTANCE_TOLERANCE = 1e-9
SKETCHED_ERROR_TOLERANCE = 0.1
STANDARD_ERROR_TOLERANCE = 0.15

# The distance of equal images whose embeddings have the rounding of different batches, absolute.
EQUAL_IMAGES_TOLERANCE = 1e-11

# Scores (2AFC, JND, average precision): a few sums in float64.
SCORE_TOLERANCE = 1e-12

# --- The trunk's operators against torch's in float64 ---

# Root mean square error over root mean square. Direct convolution in float32 makes 1e-7 to 1e-6 on these shapes; the
# first layer sums over 27 products alone.
CONVOLUTION_TOLERANCE = 3e-6
FIRST_CONVOLUTION_TOLERANCE = 3e-7

# The same of a few layers after each other, of few channels and pixels. For one by Winograd's algorithm the median is
# 4e-7 with 3x3 and 1.5e-6 with 5x5.
PROGRAM_TOLERANCE = 1e-5

# The same of Winograd's convolution over 256 and 512 channels, by the kernel, relative to the norm. With 3x3 it makes
# 6e-7 with its sums in two halves and parts, and made 1.2e-6 when they ran over 256 channels. With 5x5 it makes 2.3e-6,
# direct convolution 1.0e-6 and 1.4e-6.
MANY_CHANNELS_TOLERANCE = {3: 8e-7, 5: 3e-6}

# Winograd's convolution of one-hot images by one-hot filters: each output is one product of the transforms'
# coefficients. Of areas of one colour: the largest error, relative to the largest input.
ONE_HOT_CONVOLUTION_TOLERANCE = {3: {"atol": 2e-6, "rtol": 0}, 5: {"atol": 3e-6, "rtol": 0}}
FLAT_CONVOLUTION_TOLERANCE = 1e-5

# Of the largest value: one rounding to the type of what float32 arithmetic gives.
LAYER_TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# The operators of torch_layers.py in float64: the same operations in another order.
TORCH_LAYERS_TOLERANCE = {"atol": 1e-12, "rtol": 1e-12}

# The taps of a whole trunk in float32.
TAPS_TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}

# The norm of the error of a tap and of the images' gradient. In float32 a ReLU or a pool within rounding of a tie may
# decide otherwise, and the gradient jumps (see GRAD_TOLERANCE).
TAP_NORM_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
TRUNK_GRAD_TOLERANCE = {torch.float64: 1e-11, torch.float32: 0.05}

# LPIPS with Winograd's convolutions: what docs/cpu.md promises of values. Distances below 1e-6, of nearly identical
# images, show the rounding of the features, which is worth 5e-11.
WINOGRAD_VALUE_TOLERANCE = {"atol": 0, "rtol": 2e-5}
WINOGRAD_NEAR_TOLERANCE = {"atol": 5e-11, "rtol": 2e-5}

# --- Two computations in float32, both with rounding ---

# The same operations on the same images: a few roundings differ.
ROUNDING_TOLERANCE = 1e-6

# The same operations in another order: the sums of a convolution depend on its batch, its chunk and its layout. Maps
# have values near 0, which cancel.
REORDERED_TOLERANCE = 1e-5
REORDERED_MAPS_TOLERANCE = {"atol": 1e-7, "rtol": 1e-5}

# A gradient compiled and not compiled, by its largest value.
COMPILED_GRAD_TOLERANCE = (1e-5, 1e-4)

# The norms of two gradients, each with its own jumps (see GRAD_TOLERANCE).
FLOAT32_GRAD_TOLERANCE = 5e-4

# Another implementation on the same images: its trunk sums in another order, and it may scale the images otherwise.
OTHERS_TOLERANCE = 1e-4

# Weights after a few steps of training, absolute: with lpips's Trainer, with features kept, with features kept in 16
# bits. And of a model trained by two processes, whose sums of gradients have another order, which Adam divides by.
TRAINED_WEIGHTS_TOLERANCE = 1e-5
CACHED_TRAINED_WEIGHTS_TOLERANCE = 1e-6
HALF_TRAINED_WEIGHTS_TOLERANCE = 2e-4
TWO_PROCESSES_TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}

# torchmetrics' metric, whose trunk and head are torch's own; its network in float64, and gradients through that.
METRIC_TOLERANCE = {"atol": 2e-7, "rtol": 2e-5}
METRIC_FLOAT64_TOLERANCE = {"atol": 1e-12, "rtol": 1e-10}
METRIC_FLOAT64_GRAD_TOLERANCE = {"atol": 1e-12, "rtol": 1e-8}

# A script's numbers with lpips in it and with lpips_fast in it, or one way of a call and another: losses, distances.
SCRIPT_TOLERANCE = {"atol": 1e-6, "rtol": 1e-4}
SCRIPT_BFLOAT16_TOLERANCE = {"atol": 1e-3, "rtol": 0.05}

# --- Types of 16 bits, whose rounding in every layer of the trunk shows ---

LOW_PRECISION_TOLERANCE = {torch.float16: 0.01, torch.bfloat16: 0.05}

# AlexNet and SqueezeNet, of images that are not close to each other.
SMALL_NET_LOW_PRECISION_TOLERANCE = 0.03

# Images or weights rounded to 16 bits once, with arithmetic in float32 or alike on both sides.
ROUNDED_INPUT_TOLERANCE = 0.02

# Values computed in one 16-bit type on both sides, in another order; and gradients rounded to 16 bits on both sides.
REORDERED_LOW_PRECISION_TOLERANCE = 1e-3
ROUNDED_GRAD_TOLERANCE = 5e-3

# The norm of the error of a gradient by the GPU's layers, as a multiple of that of torch's layers in the same type.
# Found in Triton's interpreter: 1.04 in float16, and 1.9 in bfloat16, to which it truncates float32. With a conversion
# that rounds, as a GPU does, less than 1.05 was found in bfloat16, too.
LOW_PRECISION_GRAD_ERROR_RATIO = {torch.float16: 1.2, torch.bfloat16: 2.5}

# The norm of the error of VGG's gradient under autocast: with random weights it is that sensitive to bfloat16.
BFLOAT16_GRAD_TOLERANCE = 0.5

# --- LPIPS with ImageNet's weights on the package's own images, against lpips 0.1.4 in float64 ---

# Twice what was found in float32 with any of the CPU's instruction sets, Winograd's and direct convolutions and every
# backend of the head. In float64 1e-15 was found everywhere; another library of matrix products may round otherwise.
# Relative: distances of squares of 64 x 64 pixels (found: 2.0e-6, AlexNet at distance 0.025), distances of whole images
# (4.9e-7), the parts of layers (6.7e-6).
REAL_VALUE_TOLERANCE = {torch.float64: 1e-13, torch.float32: 4e-6}
WHOLE_VALUE_TOLERANCE = 1e-6
REAL_PART_TOLERANCE = {torch.float64: 1e-13, torch.float32: 1.4e-5}

# Of a map's largest value, and of the norm of a map (2.1e-6).
REAL_MAP_TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6}

# The norm of the error of a gradient, whole (7.8e-6) and in blocks (6e-7), relative to the gradient's norm, for two of
# three images. In the third a ReLU within rounding of 0 may fall the other way, and the gradient jumps: by 9e-3 at most
# in twenty squares, where lpips in float32 jumps by as much. In whole images a jump is the rule, so none is tested.
REAL_GRAD_TOLERANCE = {torch.float64: 1e-13, torch.float32: 1.6e-5}
REAL_BLOCK_TOLERANCE = {torch.float64: 1e-13, torch.float32: 1.2e-6}
REAL_JUMP_TOLERANCE = {torch.float64: 1e-13, torch.float32: 0.02}

# The median error of the gradients of twenty squares, as a multiple of the error of lpips in float32. Few of these
# gradients jump, so the median is rounding alone. Found with AVX-512, direct and by Winograd's algorithm: AlexNet 1.1
# and 1.3, VGG16 2.5 and 2.1. There torch's convolution of channels-last activations, which `direct` takes, rounds 3.5
# times as much as its convolution of NCHW, which lpips takes. Where torch has AVX2 alone, lpips rounds more: AlexNet
# 1.2 and 1.4, VGG16 1.1 and 0.9. By our portable kernels, which have no FMA, VGG16 2.5.
REAL_GRAD_ERROR_RATIO = {
    ("alex", "direct"): 1.5,
    ("alex", "winograd"): 2,
    ("vgg", "direct"): 3,
    ("vgg", "winograd"): 3,
}

# Distances, and gradients in blocks, twice what was found.
REAL_LOW_PRECISION_TOLERANCE = {"bfloat16": (1e-2, 2.5e-2), "float16": (5e-4, 7e-3)}

# --- The command line ---

# A number printed, or read from a file of text.
PRINTED_TOLERANCE = 1e-4

# The distances of lpips's example images, as `pair` prints them, absolute.
PRINTED_EXAMPLE_TOLERANCE = 2e-6

# A number printed without decimals, absolute.
PRINTED_INTEGER_TOLERANCE = 0.5

# The mean of a map: the maps of the layers are enlarged before it is taken.
MAP_MEAN_TOLERANCE = 0.05
SMALL_MAP_MEAN_TOLERANCE = 0.3  # of 64 x 64 pixels: the deepest map has 3 x 3

# The widths of a histogram's bars: their edges are read from the page, which prints a few digits.
BAR_WIDTH_TOLERANCE = 1e-2

# Frames of a lossy codec.
LOSSY_TOLERANCE = 0.1

# --- Averages over random draws ---

DROPOUT_MEAN_TOLERANCE = 0.05  # of 100 draws
DRAWS_MEAN_TOLERANCE = 0.01  # of dropout in a calibration
DRAWS_STD_TOLERANCE = 0.2
NOISE_STD_TOLERANCE = 0.05  # of noise in the pixels of one small image

# --- Sketches ---

# Against the formula in float64, of the largest value of all sketches. Sums in float32 of up to a thousand terms of
# both signs in one bucket (found: 9e-7, 2e-7 in plain torch); sketches rounded to float16, four buckets of which are
# added (1.7e-4); the same in float64 (1.4e-15).
SKETCH_TOLERANCE = {torch.float64: (1e-14, 0), torch.float32: (2e-6, 0), torch.float16: (5e-4, 0)}

# Sums of up to 1024 squares in float32 (found: 4e-7, without fused multiply-adds).
SKETCH_DISTANCE_TOLERANCE = (0, 1e-6)

# Estimates over hundreds of seeds: their mean, in standard deviations of a mean, and their standard deviation.
SKETCH_MEAN_TOLERANCE = 4
SKETCH_SPREAD_TOLERANCE = 0.2
