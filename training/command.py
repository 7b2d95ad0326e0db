"""Command lines of training and export, built from function signatures by typer.

    def main(folder: Path, /, out: Path, train: TrainConfig = TrainConfig(), seeds: tuple[int, ...] = ()) -> None: ...

    if __name__ == "__main__":
        cli(main)

Parameters before `/` are positional, all others are options. A dataclass becomes one option per field, except for
fields that share their name with a parameter. Help comes from the module's docstring, the function's "Args:" and the
comments next to fields. typer is imported when a command starts, so the modules can be imported without it.

A command prints tables for people. One with the parameter `json_output: bool = False` also has the option `--json`:
then it prints exactly one line on stdout, its result as JSON (`emit`).
"""

from __future__ import annotations

import errno
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hbaf_edge.errors import HBAFError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FLAGS = {"json_output": "--json"}  # options whose name differs from the parameter's


def cli(function: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Call a function with the arguments of a command line.

    Args:
        function: a command's `main`.
        arguments: the command line; None takes the process's own.

    Raises:
        SystemExit: the function raised an error of ours (code 1, one line), or the command line is wrong (code 2).
    """
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    # \b keeps click from joining the lines of a paragraph, which would garble the example commands.
    text = "\n\n".join("\b\n" + part for part in (sys.modules[function.__module__].__doc__ or "").split("\n\n"))
    options = list(options_of(function))
    app.command(help=text)(_callback(function, options))
    source = Path(inspect.getfile(function))
    command_line = _repeat_options(sys.argv[1:] if arguments is None else arguments, options)
    try:
        app(command_line, prog_name=f"python -m {source.parent.name}.{source.stem}")
    except SystemExit as end:
        if end.code:
            raise


def emit(result: Any, as_json: bool, *shown: Any) -> None:
    """Print the result of a command on stdout: one line of JSON, or tables and lines for people.

    Args:
        result: whatever json.dumps accepts; printed only with `as_json`.
        as_json: the command's `--json`.
        shown: rich tables or plain lines; printed only without `as_json`.

    >>> emit({"out": "runs/mine"}, True, "saved to runs/mine")
    {"out": "runs/mine"}
    >>> emit({"out": "runs/mine"}, False, "saved to runs/mine")
    saved to runs/mine
    """
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console

    for item in shown:
        Console(soft_wrap=isinstance(item, str)).print(item, highlight=False, markup=False)


def run(command: Callable[[], None]) -> None:
    """Call a command. Turn an error of ours, or of a file that cannot be read or written, into one line.

    Raises:
        SystemExit: the command failed with such an error.
    """
    try:
        command()
    except HBAFError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        if error.errno is None and not isinstance(error, FileNotFoundError):
            raise
        advice = "; make room, or give --out a folder on another disk" if error.errno in DISK_FULL else ""
        message = f"{error.filename or 'a file'}: {error.strerror}{advice}" if error.errno else str(error)
        raise SystemExit(message) from error


def options_of(function: Callable[..., None]) -> Iterator[inspect.Parameter]:
    """Options of a function as typer reads them, in the order of its signature; a dataclass gives one per field."""
    types, texts = get_type_hints(function), _args_section(function)
    signature = inspect.signature(function).parameters
    for name, parameter in signature.items():
        if is_dataclass(types[name]):
            yield from (option for option in _field_options(parameter.default) if option.name not in signature)
        else:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            yield _option(name, types[name], parameter.default, texts.get(name), positional)


def _option(name: str, kind: Any, default: Any, text: str | None, positional: bool = False) -> inspect.Parameter:
    """An option or argument of typer; a tuple takes any number of values."""
    import typer

    default = ... if default is inspect.Parameter.empty else default
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
        default = default if default is ... else list(default)
    if name in FLAGS:
        text = text or "Print the result as one line of JSON instead of tables."
        info = typer.Option(default, FLAGS[name], help=text)
    else:
        info = (typer.Argument if positional else typer.Option)(default, help=text)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)


def _field_options(default: Any) -> Iterator[inspect.Parameter]:
    """Options for the fields of a dataclass, given an instance that holds the defaults."""
    types = get_type_hints(type(default))
    try:
        source = inspect.getsource(type(default))
    except OSError:  # installed without source files: help has no comments
        source = ""
    texts = dict(re.findall(r"^    (\w+): .*?# (.+)$", source, re.M))
    for field in fields(default):
        value = getattr(default, field.name)
        if is_dataclass(value):
            yield from _field_options(value)
        else:
            yield _option(field.name, types[field.name], value, texts.get(field.name))


def _args_section(function: Callable[..., None]) -> dict[str, str]:
    """The text about each parameter in a docstring's "Args:"."""
    block = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^    (\w+): (.+)$", re.sub(r"\n {5,}", " ", block), re.M))


def _callback(function: Callable[..., None], options: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """A function of plain options, as typer needs it, that builds the dataclasses and calls `function`."""
    list_options = {option.name for option in options if get_origin(option.annotation) is list}

    def callback(**values: Any) -> None:
        values = {name: tuple(value or ()) if name in list_options else value for name, value in values.items()}
        positional, named = [], {}
        for name, parameter in inspect.signature(function).parameters.items():
            value = values[name] if name in values else _rebuild(parameter.default, values)
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                named[name] = value
        run(lambda: function(*positional, **named))

    callback.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    callback.__annotations__ = {option.name: option.annotation for option in options}
    return callback


def _rebuild(default: Any, values: dict[str, Any]) -> Any:
    """A copy of a dataclass (and of those nested in it) whose fields come from the command line."""
    current = {f.name: getattr(default, f.name) for f in fields(default)}
    return type(default)(**{n: values[n] if n in values else _rebuild(v, values) for n, v in current.items()})


def _repeat_options(arguments: Sequence[str], options: Sequence[inspect.Parameter]) -> list[str]:
    """Repeat an option before each of its values, as click needs: `--seeds 0 1` -> `--seeds 0 --seeds 1`."""
    list_options = {f"--{o.name.replace('_', '-')}" for o in options if get_origin(o.annotation) is list}
    repeated: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument if argument in list_options else ""
        elif option and repeated[-1] != option:
            repeated.append(option)
        repeated.append(argument)
    return repeated
