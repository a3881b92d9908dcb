"""``/v1/methods``: what can be asked for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from stiefel.specs import SPECS, MethodSpec
from stiefel_api.problems import Problem
from stiefel_api.security import CallerDep
from stiefel_api.views.access import MethodView
from stiefel_api.views.base import Page, problems

router = APIRouter(prefix="/v1/methods", tags=["methods"])


def schema_of(spec: type[MethodSpec]) -> dict[str, Any]:
    """Return the JSON Schema of a method's spec; ``method`` itself is required."""
    schema = spec.model_json_schema()
    schema["required"] = ["method", *schema.get("required", [])]
    return schema


def _view(name: str) -> MethodView:
    spec = SPECS[name]
    summary = spec.summary or (spec.__doc__ or "").strip().partition("\n")[0]
    return MethodView(name=name, summary=summary, schema=schema_of(spec))


@router.get("", response_model=Page[MethodView], responses=problems(), summary="List methods")
def list_all(_: CallerDep) -> Page[MethodView]:
    """Every method with the JSON Schema of its spec."""
    return Page(data=[_view(name) for name in sorted(SPECS)], has_more=False, next=None)


@router.get(
    "/{name}", response_model=MethodView, responses=problems(404), summary="Describe a method"
)
def read(
    name: Annotated[str, Path(description="Name of it.", examples=["project.unitary"])],
    _: CallerDep,
) -> MethodView:
    """One method with the JSON Schema of its spec."""
    if name not in SPECS:
        raise Problem(
            404,
            "unknown_method",
            f"There is no method {name[:100]!r}.",
            fix=f"The methods are: {', '.join(sorted(SPECS))}.",
        )
    return _view(name)
