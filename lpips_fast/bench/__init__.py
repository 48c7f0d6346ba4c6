"""The benchmark suite as a library, on a CPU or a GPU; `lpips-fast bench` is its command.

    head, end_to_end, layers    what is measured: the head alone, LPIPS whole, the trunk layer by layer
    ceilings                    the machine's limits
    patience                    what would take too long, and is left out
    cases, providers            on which images, and by whom: other packages, and this one with its options
    timing                      the clock and the turns
    records, tables, plots      lines of JSON, and what is made of them

Providers take turns, and nothing is timed before its result has been checked. The folder `benchmarks/` at the root of
the repository has scripts for other comparisons, and the committed records.
"""
