"""The Triton kernels. Importing them registers the operators of the head and of the trunk's layers."""

from lpips_fast.kernels import head, trunk

__all__ = ["head", "trunk"]
