"""The Triton kernels; importing this registers the head's operators and those of what lies between convolutions."""

from lpips_fast.kernels import head, trunk

__all__ = ["head", "trunk"]
