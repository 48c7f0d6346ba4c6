"""`lpips-fast`: LPIPS from the shell.

`commands/` has one file for each command, with the options that only this command takes; no command imports another.
`settings.py` has the options of every command (except `bench`, `convert` and `demo`), and `options.py` options of some
commands. The other modules hold what commands share; `video/` reads videos and pairs their frames.
"""

from lpips_fast.cli.program import app, main

__all__ = ["app", "main"]
