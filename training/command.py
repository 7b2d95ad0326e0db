"""Command lines of training and export from function signatures, by typer.

    def main(folder: Path, /, out: Path, train: TrainConfig = TrainConfig(), seeds: tuple[int, ...] = ()) -> None: ...

    if __name__ == "__main__":
        cli(main)

What stands before `/` is positional, all else an option; a dataclass is an option for each of its fields. Help comes
from the module's docstring, from the function's "Args:" and from the comments beside fields. typer is imported when a
command starts: the modules themselves can be imported without it.
"""

from __future__ import annotations

import errno
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hbaf_edge.errors import HBAFError

REQUIRED = inspect.Parameter.empty
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Choice:
    """One option or argument: its type, its default (REQUIRED: none) and what is said of it."""

    name: str
    kind: Any
    default: Any
    text: str
    positional: bool = False

    @property
    def several(self) -> bool:
        """Whether it takes any number of values: a tuple."""
        return get_origin(self.kind) is tuple


def cli(function: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Call a function with what a command line says.

    Args:
        function: a command's `main`.
        arguments: of the command line; None takes the process's own.

    Raises:
        SystemExit: the function could not go on (1, in one line), or the command line is wrong (2).
    """
    import typer

    found = list(choices(function))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    # \b keeps click from joining the lines of a paragraph: commands stand in them.
    text = "\n\n".join("\b\n" + part for part in (sys.modules[function.__module__].__doc__ or "").split("\n\n"))
    app.command(help=text)(_callback(function, found))
    source = Path(inspect.getfile(function))
    words = _repeated(sys.argv[1:] if arguments is None else arguments, found)
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


def choices(function: Callable[..., None]) -> Iterator[Choice]:
    """What a function can be told, in the order of its signature; of dataclasses each field."""
    kinds, texts = get_type_hints(function), _args(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(kinds[name]):
            yield from _fields(parameter.default)
        else:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            yield Choice(name, kinds[name], parameter.default, texts.get(name, ""), positional)


def _fields(default: Any) -> Iterator[Choice]:
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
            yield Choice(field.name, kinds[field.name], value, texts.get(field.name, ""))


def _args(function: Callable[..., None]) -> dict[str, str]:
    """What a docstring's "Args:" says of each parameter."""
    block = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^    (\w+): (.+)$", re.sub(r"\n {5,}", " ", block), re.M))


def _callback(function: Callable[..., None], found: Sequence[Choice]) -> Callable[..., None]:
    """A function of plain options, as typer reads them, that calls the given one with what they make."""
    import typer

    def callback(**values: Any) -> None:
        told = {c.name: tuple(values[c.name] or ()) if c.several else values[c.name] for c in found}
        first, rest = [], {}
        for name, parameter in inspect.signature(function).parameters.items():
            value = told[name] if name in told else _built(parameter.default, told)
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                first.append(value)
            else:
                rest[name] = value
        run(lambda: function(*first, **rest))

    parameters = []
    for choice in found:
        kind = list[get_args(choice.kind)[0]] if choice.several else choice.kind  # type: ignore[misc]
        default = ... if choice.default is REQUIRED else list(choice.default) if choice.several else choice.default
        made = (typer.Argument if choice.positional else typer.Option)(default, help=choice.text or None)
        parameters.append(inspect.Parameter(choice.name, inspect.Parameter.KEYWORD_ONLY, default=made, annotation=kind))
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in parameters}
    return callback


def _built(default: Any, told: dict[str, Any]) -> Any:
    """A dataclass again, with what was told in its fields."""
    values = {f.name: getattr(default, f.name) for f in fields(default)}
    return type(default)(**{n: told[n] if n in told else _built(v, told) for n, v in values.items()})


def _repeated(words: Sequence[str], found: Sequence[Choice]) -> list[str]:
    """`--seeds 0 1 2` as click takes it: the option before each of its values."""
    several = {f"--{c.name.replace('_', '-')}" for c in found if c.several and not c.positional}
    told: list[str] = []
    option = ""
    for word in words:
        if word.startswith("--"):
            option = word if word in several else ""
        elif option and told[-1] != option:
            told.append(option)
        told.append(word)
    return told
