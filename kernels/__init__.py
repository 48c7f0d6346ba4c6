"""The Triton backend; importing it registers `lpips_fast::{head_fwd,head_maps_fwd,head_bwd}_triton`."""

from . import head

__all__ = ["head"]
