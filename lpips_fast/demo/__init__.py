"""The demo: distances of everyday distortions, an image optimised against LPIPS, agreement and speed, one picture.

    python -m lpips_fast.demo                                           # writes demo.png
    python -m lpips_fast.demo --small --net alex --output docs/demo.png  # README's picture: the distances alone

`run` is the program. It calls `steps` (what LPIPS gives), `speed` (how long it takes) and `picture` (the drawing).
"""

from lpips_fast.demo.run import main

__all__ = ["main"]
