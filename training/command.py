"""Command lines of training and export from function signatures, by typer.

    def main(folder: Path, /, out: Path, train: TrainConfig = TrainConfig(), seeds: tuple[int, ...] = ()) -> None: ...

    if __name__ == "__main__":
        cli(main)

What stands before `/` is positional, all else an option; a dataclass is an option for each of its fields, but for
those that a parameter of the same name gives. Help comes from the module's docstring, from the function's "Args:" and
from the comments beside fields. typer is imported when a command starts: the modules themselves can be imported
without it.
"""

from __future__ import annotations

import errno
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hbaf_edge.errors import HBAFError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cli(function: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Call a function with what a command line says.

    Args:
        function: a command's `main`.
        arguments: of the command line; None takes the process's own.

    Raises:
        SystemExit: the function could not go on (1, in one line), or the command line is wrong (2).
    """
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    # \b keeps click from joining the lines of a paragraph: commands stand in them.
    text = "\n\n".join("\b\n" + part for part in (sys.modules[function.__module__].__doc__ or "").split("\n\n"))
    options = list(options_of(function))
    app.command(help=text)(_callback(function, options))
    source = Path(inspect.getfile(function))
    words = _repeated(sys.argv[1:] if arguments is None else arguments, options)
    try:
        app(words, prog_name=f"python -m {source.parent.name}.{source.stem}")
    except SystemExit as end:
        if end.code:
            raise


def run(command: Callable[[], None]) -> None:
    """Call a command; an error of ours, or of a file that cannot be read or written, ends in one line.

    Raises:
        SystemExit: it could not go on.
    """
    try:
        command()
    except HBAFError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        if error.errno is None and not isinstance(error, FileNotFoundError):
            raise
        advice = "; make room, or give --out a place on another disk" if error.errno in FULL else ""
        said = f"{error.filename or 'a file'}: {error.strerror}{advice}" if error.errno else str(error)
        raise SystemExit(said) from error


def options_of(function: Callable[..., None]) -> Iterator[inspect.Parameter]:
    """What a function can be told as typer reads it, in the order of its signature; of dataclasses each field."""
    kinds, texts = get_type_hints(function), _args(function)
    signature = inspect.signature(function).parameters
    for name, parameter in signature.items():
        if is_dataclass(kinds[name]):
            yield from (option for option in _fields(parameter.default) if option.name not in signature)
        else:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            yield _option(name, kinds[name], parameter.default, texts.get(name), positional)


def _option(name: str, kind: Any, default: Any, text: str | None, positional: bool = False) -> inspect.Parameter:
    """An option or argument; a tuple takes any number of values."""
    import typer

    default = ... if default is inspect.Parameter.empty else default
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
        default = default if default is ... else list(default)
    info = (typer.Argument if positional else typer.Option)(default, help=text)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)


def _fields(default: Any) -> Iterator[inspect.Parameter]:
    """Of a dataclass, from an instance that holds the defaults."""
    kinds = get_type_hints(type(default))
    try:
        source = inspect.getsource(type(default))
    except OSError:  # no source files here: help has no comments
        source = ""
    texts = dict(re.findall(r"^    (\w+): .*?# (.+)$", source, re.M))
    for field in fields(default):
        value = getattr(default, field.name)
        if is_dataclass(value):
            yield from _fields(value)
        else:
            yield _option(field.name, kinds[field.name], value, texts.get(field.name))


def _args(function: Callable[..., None]) -> dict[str, str]:
    """What a docstring's "Args:" says of each parameter."""
    block = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^    (\w+): (.+)$", re.sub(r"\n {5,}", " ", block), re.M))


def _callback(function: Callable[..., None], options: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """A function of plain options, as typer reads them, that calls the given one with what they make."""
    several = {option.name for option in options if get_origin(option.annotation) is list}

    def callback(**values: Any) -> None:
        told = {name: tuple(value or ()) if name in several else value for name, value in values.items()}
        first, rest = [], {}
        for name, parameter in inspect.signature(function).parameters.items():
            value = told[name] if name in told else _built(parameter.default, told)
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                first.append(value)
            else:
                rest[name] = value
        run(lambda: function(*first, **rest))

    callback.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    callback.__annotations__ = {option.name: option.annotation for option in options}
    return callback


def _built(default: Any, told: dict[str, Any]) -> Any:
    """A dataclass again, with what was told in its fields."""
    values = {f.name: getattr(default, f.name) for f in fields(default)}
    return type(default)(**{n: told[n] if n in told else _built(v, told) for n, v in values.items()})


def _repeated(words: Sequence[str], options: Sequence[inspect.Parameter]) -> list[str]:
    """`--seeds 0 1 2` as click takes it: the option before each of its values."""
    several = {f"--{o.name.replace('_', '-')}" for o in options if get_origin(o.annotation) is list}
    told: list[str] = []
    option = ""
    for word in words:
        if word.startswith("--"):
            option = word if word in several else ""
        elif option and told[-1] != option:
            told.append(option)
        told.append(word)
    return told
