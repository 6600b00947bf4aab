"""The service: endpoints, one page to look at a user, errors in one shape."""

import base64
import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from assets.serving import schemas
from assets.serving.endpoints import RequestError, Responses, Service, looking, recommending
from assets.serving.guard import BODY_BYTES, Guard, Metrics, fault

PAGE = Path(__file__).with_name("page.html")
ABOUT = f"""Recommendations of trained models, with reasons, for users of the dataset and for new ones.

Ids are the raw ids of the source data and stand in the query or the body, never in the path: they may hold any
character. Limits: `k` and `limit` up to {schemas.MOST_ITEMS}, {schemas.MOST_GIVEN} items of a new user, ids of
{schemas.ID_CHARACTERS:,} and texts of {schemas.TEXT_CHARACTERS:,} characters, bodies of {BODY_BYTES // 1024} KiB.
Every error is `{{"errors": [{{"field", "value", "message"}}]}}`. Where the service was started with a token, every
request but that for `/v1/health` carries it: `Authorization: Bearer TOKEN`."""
ALWAYS: Responses = {
    400: {"model": schemas.Faults, "description": "The body is no text, or the host is none of this service's."},
    401: {"model": schemas.Faults, "description": "No token, or a wrong one."},
    413: {"model": schemas.Faults, "description": "The body is too long."},
    422: {"model": schemas.Faults, "description": "A field that cannot be used."},
}


def make_app(service: Service, token: str | None = None, hosts: Sequence[str] | None = None) -> FastAPI:
    """The service as an ASGI application; for `token` and `hosts` see `guard.Guard`."""
    # The usual pages of an API's documentation load scripts from elsewhere.
    app = FastAPI(
        title=f"SCALE: {service.catalogue.dataset}", version="1", description=ABOUT, docs_url=None, redoc_url=None,
        openapi_url="/v1/openapi.json", responses=ALWAYS, generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    metrics = Metrics()
    app.add_middleware(Guard, metrics=metrics, token=token, hosts=hosts)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestError, _refused)
    app.include_router(looking(service))
    app.include_router(recommending(service))
    page, policy = _page()

    @app.get("/", include_in_schema=False)
    async def look() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @app.get("/v1/metrics", summary="Requests, errors and latencies, for Prometheus", response_class=Response)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return JSONResponse({"errors": [fault(error.message, error.field, error.value)]}, error.status)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        wrong = fault("the body is no JSON in UTF-8", "body")
    else:
        told = {404: "there is nothing here; /v1/openapi.json lists what there is"}
        message = told.get(error.status_code, "this method does not work here; /v1/openapi.json says which does")
        wrong = fault(message, "path", f"{request.method} {request.url.path}")
    content = {"errors": [wrong]}
    return JSONResponse(content, error.status_code, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    known = _fields(request)
    return JSONResponse({"errors": [_told(problem, known) for problem in error.errors()]}, 422)


def _told(problem: Mapping[str, Any], known: Sequence[str]) -> dict[str, str | None]:
    """A problem that pydantic found, in this service's shape."""
    _, *path = problem["loc"]  # where it stands: query or body
    field = ".".join(map(str, path)) or "body"
    match problem["type"]:
        case "json_invalid":
            return fault(f"this is no JSON: {problem.get('ctx', {}).get('error', 'it ends early')}", "body")
        case "missing":
            return fault(f"{field} is missing; give it", field)
        case "extra_forbidden":
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            return fault(f"there is no field {field}; {hint}", field, problem["input"])
    return fault(f"{field}: {problem['msg'][0].lower()}{problem['msg'][1:]}", field, problem["input"])


def _fields(request: Request) -> list[str]:
    """Names of the fields that the endpoint knows."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return []
    dependant = route.dependant
    models = [each.field_info.annotation for each in (*dependant.query_params, *dependant.body_params)]
    return [name for model in models for name in getattr(model, "model_fields", {})]


def _page() -> tuple[str, str]:
    """The page, and a policy that lets run what stands in it and nothing else."""
    text = PAGE.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    policy = {
        "default-src": "'none'",
        "script-src": f"'sha256-{hashes['script']}'",
        "style-src": f"'sha256-{hashes['style']}'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return text, "; ".join(f"{name} {value}" for name, value in policy.items())
