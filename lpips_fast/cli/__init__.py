"""`lpips-fast`: LPIPS from the shell.

`commands/` has one file for each command, and no command imports another. The modules beside it hold what they share;
`video/` reads videos and pairs their frames.
"""

from lpips_fast.cli.program import app, main

__all__ = ["app", "main"]
