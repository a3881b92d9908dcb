"""The base of every spec, the registry that subclassing fills, and the parser.

A method's name is the default of its ``method`` field; defining the class registers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stiefel.errors import InvalidInputError

ArtifactId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]

SPECS: dict[str, type[MethodSpec]] = {}


class InvalidSpecError(InvalidInputError):
    """A spec that its method's model refuses.

    ``problems`` lists every fault as ``{"field": JSON pointer, "detail": text}``; ``field``
    is the pointer of the first.
    """

    default_code = "invalid_spec"

    def __init__(self, detail: str, *, problems: list[dict[str, str]], **kwargs: Any) -> None:
        super().__init__(detail, **kwargs)
        self.problems = problems


class MethodSpec(BaseModel):
    """What a caller may ask of one method: closed, every number bounded, no torch.

    Subclasses give ``method`` a ``Literal`` type whose default is the method's name; a
    subclass without that default is a shared base and is not registered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of every random draw.")

    summary: ClassVar[str] = ""
    #: Whether checkpoints are of use once the job has succeeded, and stay downloadable.
    keeps_checkpoints: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        name = cls.model_fields["method"].default
        if isinstance(name, str):
            SPECS[name] = cls

    def inputs(self) -> dict[str, str]:
        """Map the name of every staged file to the id of the artifact it comes from."""
        return {}


def parse_spec(data: Any) -> MethodSpec:
    """Return the validated spec that ``data`` (decoded JSON) describes.

    Raises:
        InvalidSpecError: not an object, no or an unknown ``method`` (codes ``invalid_spec``,
            ``method_missing``, ``unknown_method``), or fields the method refuses; every
            fault is listed with its JSON pointer.
    """
    if not isinstance(data, Mapping):
        raise _refusal("", "the spec must be a JSON object", fix='Send {"method": ...}.')
    name = data.get("method")
    if name is None:
        raise _refusal("/method", "the spec names no method", code="method_missing", fix=_known())
    if not isinstance(name, str) or name not in SPECS:
        detail = f"unknown method {str(name)[:100]!r}"
        raise _refusal("/method", detail, code="unknown_method", fix=_known())
    try:
        return SPECS[name].model_validate(dict(data))
    except ValidationError as error:
        raise _from_pydantic(error, data) from error


def _known() -> str:
    return "Use one of: " + ", ".join(sorted(SPECS)) + "."


def _refusal(field: str, detail: str, **kwargs: Any) -> InvalidSpecError:
    problems = [{"field": field, "detail": detail}]
    return InvalidSpecError(detail, problems=problems, field=field, **kwargs)


def _from_pydantic(error: ValidationError, data: Mapping[str, Any]) -> InvalidSpecError:
    problems = [
        {
            "field": _pointer(fault["loc"], data, missing=fault["type"] == "missing"),
            "detail": fault["msg"],
        }
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    first = problems[0]
    where = first["field"] or "/"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidSpecError(
        f"{where}: {first['detail']}{more}",
        problems=problems,
        field=first["field"],
        fix="Correct the field; the method's JSON Schema lists what it takes.",
    )


def _pointer(location: tuple[int | str, ...], data: Any, *, missing: bool) -> str:
    """JSON pointer of ``location``, leaving out the union tags that pydantic inserts."""
    parts: list[str] = []
    for position, part in enumerate(location):
        if _holds(data, part):
            data = data[part]
        elif not (missing and position == len(location) - 1):
            continue
        parts.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in parts)


def _holds(data: Any, part: int | str) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, Mapping) and part in data
