"""Scripts of one comparison each, and the committed records of all measurements, in `results/`.

`lpips_fast/bench/` is the benchmark suite as a library, with the command `lpips-fast bench`. It measures the head,
LPIPS whole, the trunk's layers and the machine's limits. A script here measures what the suite does not, with its clock
and its records:

    checkouts         two checkouts of this repository against each other
    kernels           where a GPU's time goes, kernel by kernel
    dirs              `lpips-fast dirs` against the script of lpips
    matrix            all pairs of images against the script of lpips
    search            the index of sketches against the index of whole vectors; photographs has its images
    training          a step of calibration against the Trainer of lpips
    precision         the error of each precision of the trunk
    other_packages    what LPIPS of other packages gives
    test_head         the head under pytest-benchmark, for `make bench`
"""
