"""From a function to a command: its options, the files that it writes, and its exit status."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import typer

from lpips_fast.cli import errors, output, processes
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.options import OUTPUT_PANEL


def register(
    app: typer.Typer,
    name: str,
    run: Callable[..., None],
    examples: Sequence[str],
    *,
    sharded: bool = False,
    without: Sequence[str] = (),
    writes_folder: bool = False,
) -> None:
    """Adds a command to the program.

    While the command runs, no other run can write to the files of its output options. They are checked before it
    starts.

    Args:
        app: the program.
        name: the command's name.
        run: the function. Its parameters are the command's arguments and options. A parameter whose type is a
            dataclass, such as `settings: Settings`, stands for the options that are the fields of the dataclass.
            Exceptions become messages and an exit status.
        examples: command lines for the help text.
        sharded: whether several processes can share the work of the command.
        without: fields of the dataclasses that this command does not have as options.
        writes_folder: whether --output is a folder, which this function does not check.
    """
    own = inspect.signature(run)
    hints = typing.get_type_hints(run, include_extras=True)
    groups = {key: hints[key] for key in own.parameters if is_dataclass(hints[key])}
    parameters = [p.replace(annotation=hints[p.name]) for p in own.parameters.values() if p.name not in groups]
    grouped = {key: _parameters(kind, without) for key, kind in groups.items()}
    outputs = {} if writes_folder else _output_options(parameters)

    @functools.wraps(run)
    def command(**arguments: Any) -> None:
        with exit_status():
            for key, kind in groups.items():
                arguments[key] = kind(**{p.name: arguments.pop(p.name) for p in grouped[key]})
            if processes.count() > 1 and not sharded:
                shared = "dirs, matrix, index, search, duplicates and train"
                raise UsageError(f"{name} is one process's work; torchrun can share that of {shared}")
            files = {option: arguments[key] for key, option in outputs.items() if arguments[key] is not None}
            with output.claiming(files if processes.rank() == 0 else {}):
                try:
                    run(**arguments)
                finally:
                    sys.stdout.flush()

    command.__signature__ = inspect.Signature([*parameters, *itertools.chain(*grouped.values())])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    del command.__wrapped__
    app.command(name, epilog="\n\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in examples)]))(command)


def _parameters(kind: type[Any], without: Sequence[str]) -> list[inspect.Parameter]:
    """The fields of a dataclass of options as parameters of a function."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(kind)
        if f.name not in without
    ]


def _output_options(parameters: Sequence[inspect.Parameter]) -> dict[str, str]:
    """The options that name a file to write, by the names of their parameters."""
    found = {}
    for p in parameters:
        kind, option = typing.get_args(p.annotation)
        if option.rich_help_panel == OUTPUT_PANEL and Path in (kind, *typing.get_args(kind)):
            found[p.name] = option.default if isinstance(option.default, str) else f"--{p.name}"
    return found


@contextmanager
def exit_status() -> Iterator[None]:
    """Turns an exception that ends a command early into a message on stderr and an exit status."""
    try:
        yield
    except (SystemExit, typer.Exit):
        raise
    except KeyboardInterrupt as error:
        _say("interrupted")
        raise typer.Exit(errors.INTERRUPTED) from error
    except BrokenPipeError as error:  # the program that read stdout closed it, as `head` does
        raise typer.Exit(errors.STDOUT_CLOSED) from error
    except UsageError as error:
        _end(error, errors.USAGE)
    except ReadError as error:
        _end(error, errors.READ_ERRORS)
    except processes.LostError as error:
        output.warn(str(error))  # once, and not once for each process that is left
        raise typer.Exit(errors.FAILED) from error
    except (OSError, RuntimeError, MemoryError) as error:
        _end(error, errors.FAILED)


def _end(error: Exception, status: int) -> typing.NoReturn:
    _say(f"error: {str(error) or repr(error)}")
    raise typer.Exit(status) from error


def _say(message: str) -> None:
    rank = f" (rank {processes.rank()})" if processes.count() > 1 else ""
    print(f"lpips-fast{rank}: {message}", file=sys.stderr, flush=True)
