"""The OpenAPI 3.1 document: what FastAPI derives, with the methods' specs spelt out."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from stiefel.specs import SPECS
from stiefel_api.routes.methods import schema_of
from stiefel_api.version import VERSION
from stiefel_api.views.base import ProblemView
from stiefel_api.views.jobs import SPEC_EXAMPLE

_TEXT = """\
Weights on matrix manifolds, as jobs: upload a checkpoint, POST a job, poll it, download the result.

Every error is a problem document (RFC 9457) that names the fault and its remedy. Every POST of a
job may carry an `Idempotency-Key`; every file has its SHA-256; ids of others answer 404.
"""


def install(app: FastAPI) -> None:
    """Make the application describe itself with ``document``."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def document(app: FastAPI) -> dict[str, Any]:
    """Return the document of an application."""
    described = get_openapi(
        title="Stiefel",
        version=VERSION,
        openapi_version="3.1.0",
        summary="Training-as-a-service for matrix manifolds.",
        description=_TEXT,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        routes=app.routes,
    )
    schemas = described["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _add(schemas, "Problem", ProblemView.model_json_schema(ref_template=_REF))
    _spell_out_specs(schemas)
    return described


_REF = "#/components/schemas/{model}"


def _add(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    """Add a schema, and its definitions beside it, where references look for them."""
    for inner, definition in schema.pop("$defs", {}).items():
        schemas[inner] = definition
    schemas[name] = schema


def _spell_out_specs(schemas: dict[str, Any]) -> None:
    """Say what a job's spec may be, method by method."""
    names: dict[str, str] = {}
    for method in sorted(SPECS):
        spec = SPECS[method]
        schema = spec.model_json_schema(ref_template=_REF)
        schema["required"] = schema_of(spec)["required"]
        names[method] = _REF.format(model=spec.__name__)
        _add(schemas, spec.__name__, schema)
    schemas["NewJob"]["properties"]["spec"] = {
        "title": "Spec",
        "description": "What to do; `method` decides which fields there are.",
        "oneOf": [{"$ref": reference} for reference in names.values()],
        "discriminator": {"propertyName": "method", "mapping": names},
        "examples": [SPEC_EXAMPLE],
    }
