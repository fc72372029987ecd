"""How a command is offered to Python: options checked once, messages on the way, a function to call.

The command line and a notebook call the same function: ``cli/<command>.py`` builds the options from what was
typed, ``fgvc_cli.<command>(...)`` from its arguments. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, ParamSpec, Protocol, TypeVar, dataclass_transform, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from fgvc_cli.errors import EXIT_USAGE, FgvcError

P = ParamSpec("P")
Given = TypeVar("Given")
Result = TypeVar("Result")


def _several(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(os.fspath(each) if isinstance(each, os.PathLike) else each for each in value)
    return () if value is None else (value,) if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""An option that may be given more than once; in Python one text is one of them."""


class Advance(Protocol):
    """Moves a bar; ``total`` is given again where it is known only by now."""

    def __call__(self, count: int = 1, *, total: int | None = None, text: str | None = None) -> None: ...


class Messages:
    """What a command says while it works: plain lines on stderr, and no bars.

    The command line gives an heir that draws bars on a terminal (``cli/progress.py``); so may a program.

    Args:
        quiet: say nothing but warnings.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet

    def print(self, text: str) -> None:
        """One line, always."""
        print(text, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """One line, unless quiet."""
        if not self.quiet:
            self.print(text)

    def warn(self, text: str) -> None:
        """One line on what went wrong and did not end the work."""
        self.print(f"warning: {text}")

    @contextlib.contextmanager
    def bar(
        self, text: str, total: int | None = None, *, unit: str = "images", lines: bool = False
    ) -> Iterator[Advance]:
        """Work on ``total`` things, done one after another; ``text`` says what is done.

        Args:
            lines: also say now and then how far it is, where no bar can be drawn.
        """

        def stay(count: int = 1, *, total: int | None = None, text: str | None = None) -> None:
            """Nothing is drawn."""

        yield stay


@dataclass_transform(frozen_default=True)
def options(cls: type[Given]) -> type[Given]:
    """Make a class the options of a command: a frozen dataclass whose values are checked as it is made.

    Types are those of the annotations; a ``Literal`` is a choice, ``Field(ge=1)`` a limit. Where text is
    expected, a path or a number will do.

    Raises:
        FgvcError: as an object is made: a value that is of the wrong type, out of range or none of the
            choices.
    """
    config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", coerce_numbers_to_str=True)
    made: Any = dataclass(frozen=True, config=config)(cls)
    init, signature = made.__init__, inspect.signature(made)

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        # By name, so that an error says which; what is no option is a TypeError, as of every function.
        given = {
            name: os.fspath(value) if isinstance(value, os.PathLike) else value
            for name, value in signature.bind(*args, **kwargs).arguments.items()
        }
        try:
            init(self, **given)
        except ValidationError as error:
            raise _explain(error) from None

    made.__init__ = checked
    return made


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "True or False",
    "bool_parsing": "True or False",
    "string_type": "text",
    "path_type": "a path",
}
"""Kind of error -> what was expected."""


def _explain(error: ValidationError) -> FgvcError:
    """What arrived and all that could have: of a union, each of its types has an error of its own."""
    errors = error.errors()
    first = errors[0]
    kinds = [each for each in errors if each["loc"][0] == first["loc"][0] and each["input"] == first["input"]]
    expected = " or ".join(dict.fromkeys(map(_expected, kinds)))
    option = "--" + str(first["loc"][0]).replace("_", "-")
    return FgvcError(f"{option} got {first['input']!r}, expected {expected}.", None, EXIT_USAGE)


def _expected(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    limits = {
        "literal_error": str(context.get("expected", "")).replace("'", ""),
        "greater_than_equal": f"{context.get('ge', 0):g} or more",
        "less_than_equal": f"{context.get('le', 0):g} at most",
    }
    text = limits.get(kind) or _EXPECTED.get(kind) or error["msg"]
    return text.removeprefix("Input should be ").removeprefix("Value error, ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MessageOptions:
    """How much a command says, and to whom."""

    quiet: bool = False
    """Say nothing but warnings."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""

    @property
    def speaker(self) -> Messages:
        """Who says it."""
        return self.messages or Messages(quiet=self.quiet)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """Boxes from a detector or by hand: what every command that reads images takes them from."""

    boxes: Path | None = None
    """MegaDetector JSON, COCO JSON or CSV: each box is looked at by itself."""
    box_conf: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only boxes of at least this score, and those without one."""
    box_margin: Annotated[float, Field(ge=0, le=2)] | None = None
    """What is cut round a box, as a fraction of its sides, on each side; None: nothing."""
    box_category: Several = ()
    """Only boxes of these categories of the file, names or ids; none: all."""

    def __post_init__(self) -> None:
        """Raise FgvcError where there is a choice of boxes and none are given."""
        for name in ("box_conf", "box_margin", "box_category"):
            # Labelled data may have boxes of their own, also those of the training; whoever reads them knows.
            of_data = name == "box_margin" and hasattr(self, "data")
            if self.boxes is None and not of_data and getattr(self, name) not in (None, ()):
                message = f"--{name.replace('_', '-')} chooses among boxes, and there are none."
                raise FgvcError(message, "Add --boxes FILE", EXIT_USAGE)


NO_BOXES = BoxOptions()


def box_settings(options: BoxOptions) -> dict[str, Any]:
    """Those that are given, as plain values of ``config.TrainConfig``."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(BoxOptions)}
    given["boxes"] = options.boxes and str(options.boxes)
    return {name: value for name, value in given.items() if value not in (None, ())}


class Command(Generic[P, Given, Result]):
    """A function of the public interface, which is called with the fields of its options."""

    def __init__(self, work: Callable[[Given], Result], kind: Callable[P, Given]):
        functools.update_wrapper(self, work)
        self.__annotations__ = {**_resolved(kind), "return": _resolved(work)["return"]}
        signature = inspect.signature(kind)
        parameters = [
            parameter.replace(annotation=self.__annotations__[parameter.name])
            for parameter in signature.parameters.values()
        ]
        self.__signature__ = inspect.Signature(parameters, return_annotation=self.__annotations__["return"])
        self._work, self._kind = work, kind

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result:
        """Do it, with the options as arguments."""
        return self.run(self._kind(*args, **kwargs))

    def run(self, options: Given) -> Result:
        """Do it, with options that are made already."""
        return self._work(options)


def _resolved(annotated: Any) -> dict[str, Any]:
    """The annotations of a class or a function, as types."""
    return get_type_hints(annotated, include_extras=True)


def command(
    kind: Callable[P, Given],
) -> Callable[[Callable[[Given], Result]], Command[P, Given, Result]]:
    """Offer a function of an options object as one of its fields.

    Args:
        kind: the class of the options, see ``options``.
    """
    return lambda work: Command(work, kind)
