"""The addresses of the API, and the application that has them."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexiseg.apps.server.answers import MEDIA_TYPES, answer
from lexiseg.apps.server.documentation import OPENAPI_SEGMENT, SEGMENT_RESPONSES, SUMMARY, refusal_responses
from lexiseg.apps.server.metrics import CONTENT_TYPE, Metrics
from lexiseg.apps.server.questions import read_ask
from lexiseg.apps.server.refusals import CLIENT_LEFT, REASONS, ClientLeftError, Refusal
from lexiseg.apps.server.service import Service
from lexiseg.results import TASKS
from lexiseg.zoo.catalogue import ZOO

log = logging.getLogger(__name__)

_T = TypeVar("_T")

LABEL_STUDIO_PATHS = ("/health", "/setup", "/predict", "/versions", "/webhook")
"""The addresses of a backend of Label Studio, if it is one."""

_DRAINED_SECONDS = 2.0
"""A client that is refused may finish sending for so long: many read no answer before."""


def make_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The API over a service. With a key, /v1 asks for it; health and counts are open."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Lexiseg",
        version=version("lexiseg"),
        description=SUMMARY,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )  # the usual pages of documentation load their programs from elsewhere
    app.add_middleware(Bookkeeping, metrics=service.metrics)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_there)
    _add_health(app, service)
    _add_api(app, service, api_key)
    return app


def _add_api(app: FastAPI, service: Service, api_key: str | None) -> None:
    keyed = [key_check(api_key)]

    @app.get(
        "/v1/models", dependencies=keyed, responses=refusal_responses("wrong_key"), summary="Models to choose from"
    )
    async def models() -> dict[str, Any]:
        return {"models": [_told(name, usual=name == service.models[0]) for name in service.models]}

    @app.post(
        "/v1/segment",
        dependencies=keyed,
        responses=SEGMENT_RESPONSES,
        openapi_extra=OPENAPI_SEGMENT,
        response_class=Response,
        summary="A photo and words in, masks out",
    )
    async def segment(request: Request) -> Response:
        async with drained(request):
            with service.place():
                return await _segment(service, request)

    # Else the page, which has all other addresses, would answer.
    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing(rest: str) -> None:
        raise HTTPException(405 if rest in ("segment", "models") else 404)


def key_check(api_key: str | None) -> Any:
    """A dependency of an address that asks for the key, where there is one."""

    async def check_key(request: Request) -> None:
        async with drained(request):
            if api_key is not None and not same_key(given_key(request), api_key):
                raise Refusal("wrong_key", "send the API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")

    return Depends(check_key)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Does it take requests?", responses=refusal_responses("closing"))
    async def readyz() -> dict[str, str]:
        if service.closing:
            raise Refusal("closing", "the server is being stopped")
        return {"status": "ready"}

    @app.get("/metrics", summary="Counts for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _segment(service: Service, request: Request) -> Response:
    """The answer within the time limit, unless the client leaves."""
    async with in_time(service) as has_arrived:
        ask = await read_ask(request, service.limits, service.models)
        has_arrived()
        told = {"model": ask.model, "task": ask.task, "words": len(ask.vocabulary), "image_bytes": len(ask.image)}
        request.scope["lexiseg.told"] = told
        result = await unless_gone(request, service.segment(ask))
        told |= {"height": result.size_hw[0], "width": result.size_hw[1], "segments": len(result.segments)}
        body = await service.in_pool("answer", lambda: answer(result, ask.form))
    return Response(body, media_type=MEDIA_TYPES[ask.form])


@asynccontextmanager
async def in_time(service: Service) -> AsyncIterator[Callable[[], None]]:
    """The time limit of a request. Gives what is to be called when all of it has been read."""
    started, read = time.perf_counter(), False

    def has_arrived() -> None:
        nonlocal read
        read = True
        service.metrics.stage_seconds.labels("read").observe(time.perf_counter() - started)

    try:
        async with asyncio.timeout(service.limits.seconds):
            yield has_arrived
    except TimeoutError:
        seconds = f"{service.limits.seconds:g} seconds"
        if not read:
            raise Refusal("too_slow", f"the request did not arrive within {seconds}; make the photo smaller") from None
        raise Refusal("too_late", f"no answer within {seconds}; try again later, or with a smaller photo") from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What the work gives; where the client leaves first, the work is cancelled and ClientLeftError raised."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def drained(request: Request) -> AsyncIterator[None]:
    """A client that is still sending gets to read its refusal."""
    try:
        yield
    except Refusal:
        await drain(request)
        raise


async def drain(request: Request) -> None:
    """Reads on for a moment and keeps nothing."""
    try:
        async with asyncio.timeout(_DRAINED_SECONDS):
            async for _ in request.stream():
                pass
    except (TimeoutError, ClientDisconnect, RuntimeError):  # the last: the body has been read already
        pass


def same_key(given: str, key: str) -> bool:
    """In constant time: how long it takes does not tell how much of a guess is right."""
    return hmac.compare_digest(given.encode(), key.encode())


def given_key(request: Request) -> str:
    """What a client sent; of HTTP's basic authentication the password."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(token.strip(), validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def _told(name: str, usual: bool) -> dict[str, Any]:
    entry = ZOO.get(name)
    return {
        "name": name,
        "title": name if entry is None else entry.title,
        "weights_licence": "" if entry is None else entry.weights_licence,
        "tasks": list(TASKS),
        "default": usual,
    }


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # for the reader of types
    request.scope["lexiseg.told"] = {**request.scope.get("lexiseg.told", {}), "code": error.code}
    return JSONResponse(error.body(), error.status, error.headers)


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = next((code for code, reason in REASONS.items() if reason.status == error.status_code), "broken_request")
    refusal = Refusal(code, f"{request.method} {request.url.path[:100]}: {REASONS[code].meaning}")
    return JSONResponse(refusal.body(), error.status_code, error.headers)


class Bookkeeping:
    """A number for every request, a line in the log, and counts; a mistake of ours becomes an answer in words."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number, started, status = uuid.uuid4().hex[:16], time.perf_counter(), 0

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self.app(scope, receive, numbered)
        except (ClientLeftError, ClientDisconnect):
            status = CLIENT_LEFT
        except Exception:
            log.exception("a mistake", extra={"request": number})
            if not status:
                refusal = Refusal("own_mistake", f"the server made a mistake; its log has more under {number}")
                await JSONResponse(refusal.body(), refusal.status)(scope, receive, numbered)
        finally:
            seconds, path = time.perf_counter() - started, _counted_path(scope)
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            told = {"method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 4)}
            level = logging.INFO if path.startswith(("/v1", "/predict")) else logging.DEBUG
            log.log(level, "request", extra={"request": number, **told, **scope.get("lexiseg.told", {})})


def _counted_path(scope: Scope) -> str:
    """Few enough to count by: what a client makes up is "other"."""
    path = scope["path"]
    known = ("/v1/segment", "/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json", "/", *LABEL_STUDIO_PATHS)
    return path if path in known else "/gradio_api" if path.startswith("/gradio_api/") else "other"
