"""Benchmarks: the head alone, LPIPS whole, the trunk's layers, and the machine's limits, on a CPU or a GPU.

What is compared takes turns, results are checked before any is timed, and what was measured goes into records, lines
of JSON, from which tables and plots are made. `lpips-fast bench` is the command.
"""
