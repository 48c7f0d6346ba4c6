"""The demo: distances of everyday distortions, an image optimised against LPIPS, agreement and speed, one picture.

python -m lpips_fast.demo
"""

from lpips_fast.demo.run import main

__all__ = ["main"]
