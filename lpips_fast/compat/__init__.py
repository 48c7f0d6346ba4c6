"""LPIPS with the signatures, results and state_dict keys that other code bases have grown around.

`compat.taming.LPIPS` is that of taming-transformers and CogVideo, `compat.piq.LPIPS` that of piq. What `lpips` users
need is `lpips_fast.LPIPS` itself, what torchmetrics users need `lpips_fast.metric`. `compat.lpips` has what else there
is in `lpips`; `lpips_fast` has its names.
"""
