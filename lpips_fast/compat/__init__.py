"""LPIPS with the signatures, results and state_dict keys of other code bases.

`compat.taming.LPIPS` replaces the class of taming-transformers and CogVideo, `compat.piq.LPIPS` that of piq.
`lpips_fast.LPIPS` replaces the class of `lpips`, and `lpips_fast.metric` the metric of torchmetrics. `compat.lpips` has
the helpers of `lpips`, which are also names of `lpips_fast`. `compat.monkeypatch` has `lpips_fast.patch`.
"""
