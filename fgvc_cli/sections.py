"""Typed groups of settings: built from plain values or from ``--set`` text, refused with one clear line.

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest


class Section(BaseModel):
    """A frozen group of settings; unknown names and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, values: Any) -> Any:
        """What ``none`` and a comma in a ``--set`` mean depends on the field."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {k: _from_text(v, fields[k].annotation) if k in fields else v for k, v in values.items()}


class SetText(str):
    """What ``--set`` was given; unlike other strings, its meaning depends on the field it is for."""


def _from_text(value: Any, annotation: Any) -> Any:
    if not isinstance(value, SetText):
        return value
    if value.lower() in ("none", "null") and type(None) in get_args(annotation):
        return None
    kinds = (annotation, *get_args(annotation))
    return value.split(",") if any(get_origin(kind) is tuple for kind in kinds) else value


def build(cls: type[Section], values: dict[str, Any]) -> Any:
    """Construct a section from plain values.

    Raises:
        FgvcError: a value of the wrong type or range, or an unknown name, with the nearest known ones.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _explain(error, cls) from None


def apply_sets(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Lay ``section.field=value`` strings over nested plain values; the values stay strings for validation.

    Raises:
        FgvcError: an assignment without ``=``.
    """
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise FgvcError(
                f"--set got {assignment!r}, expected section.field=value.",
                "For example: --set optim.lr_backbone=0.01",
                EXIT_USAGE,
            )
        *sections, last = name.strip().split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise FgvcError(
                    f"--set {name}: {section} is a single value, not a section.", None, EXIT_USAGE
                )
        place[last] = SetText(text.strip())
    return values


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested plain values over others; what ``above`` does not say stays."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def _explain(error: ValidationError, cls: type[Section]) -> FgvcError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        return FgvcError(f"Unknown setting {name!r}.", _nearest_setting(name, cls), EXIT_USAGE)
    reason = first["msg"].removeprefix("Value error, ")
    return FgvcError(f"Setting {name} got {first['input']!r}: {reason}.", None, EXIT_USAGE)


def _kinds(cls: type[Section]) -> Iterator[type[Section]]:
    for kind in cls.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _nearest_setting(name: str, cls: type[Section]) -> str:
    """Settings of ``cls`` whose last name is near, written as they are typed."""
    paths: dict[str, str] = {}
    for path in _paths(cls):
        paths.setdefault(path.rpartition(".")[2], path)
    last = name.rpartition(".")[2]
    elsewhere = any(last in kind.model_fields for kind in _kinds(Section))
    if "options" in cls.model_fields and last not in paths and elsewhere:
        return f"Settings of the model are options: --set options.{last}=..."
    near = [paths[key] for key in nearest(last, sorted(paths))]
    return f"Nearest: {', '.join(near)}." if near else "See fgvc train --help."


def _paths(cls: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _paths(kind, f"{prefix}{name}.")
        else:
            yield prefix + name
