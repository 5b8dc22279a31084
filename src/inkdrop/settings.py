"""The base of every configuration model: strict, readable errors, plain JSON."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from .errors import InkdropError, unknown_name


class Settings(BaseModel):
    """A model whose mistakes are reported as one `InkdropError`; fields can be assigned to."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InkdropError(_readable(error, type(self))) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).model_fields:
            raise unknown_name("field", name, type(self).model_fields)
        before = self.__dict__[name]
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            self.__dict__[name] = before  # pydantic keeps what a validator of the model refused
            raise InkdropError(_readable(error, type(self))) from None


def one_of(kind: str, choices: tuple[str, ...]) -> AfterValidator:
    """For a string field that must be among `choices`; an unknown one is told the nearest."""

    def check(value: str) -> str:
        if value not in choices:
            raise unknown_name(kind, value, choices)
        return value

    return AfterValidator(check)


def _readable(error: ValidationError, model: type[BaseModel]) -> str:
    return "; ".join(_sentence(dict(details), model) for details in error.errors())


def _sentence(details: dict[str, Any], model: type[BaseModel]) -> str:
    path = _path(details["loc"], model)
    if details["type"] == "extra_forbidden":
        path = ".".join([*filter(None, [path]), str(details["loc"][-1])])
        nearest = difflib.get_close_matches(path, sorted(field_paths(model)), n=1, cutoff=0.5)
        hint = f": did you mean {nearest[0]!r}?" if nearest else ""
        return f"unknown field {path!r}{hint}"
    if details["type"] == "value_error":
        reason = str(details["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    message: str = details["msg"]
    if details["type"] == "union_tag_invalid":
        message = f"Input should be of kind {details['ctx']['expected_tags']}"
    if message.startswith("Input should be "):
        message = f"{path} must be {message.removeprefix('Input should be ')}"
    else:
        message = f"{path}: {message}"
    return f"{message}, got {details['input']!r}"


def _path(location: tuple[str | int, ...], model: type[BaseModel]) -> str:
    """pydantic's location as a dotted path of fields, without the tags of unions."""
    known = field_paths(model)
    path = ""
    for part in location:
        longer = f"{path}.{part}" if path else str(part)
        if longer in known:
            path = longer
    return path


def field_paths(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Every field of a model and of the models within, by dotted path."""
    paths = set()
    for name, field in model.model_fields.items():
        paths.add(prefix + name)
        for inner in _models_in(field.annotation):
            paths |= field_paths(inner, f"{prefix}{name}.")
    return paths


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in get_args(annotation) for m in _models_in(inner)]
