"""The annotation page's server: what may ask, how much and how often, and the routes.

What goes wrong is answered with a status and {"error": one sentence}.
"""

from __future__ import annotations

import collections
import hmac
import json
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from sam_jax.data.store import StoreError
from sam_jax.engine import checks
from sam_jax.engine.annotation import Annotation
from sam_jax.engine.assistant import NotReady

MOST_BYTES = 8 << 20
"""Of a request's body."""
RATE, BURST = 60.0, 240.0
"""Requests a second of one annotator, for long and at once."""
STATIC = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(
    annotation: Annotation, hosts: set[str] | None = None, token: str | None = None
) -> Starlette:
    """The server as an ASGI application.

    Args:
      annotation: what it works on.
      hosts: names that it may be called by, without port: a page elsewhere that points its own
        name at this address gets nothing; None: any.
      token: must come with each request, as a cookie that `/?token=TOKEN` sets, or as X-Token.
    """
    guard = _Guard(hosts, token)
    gets = {
        "/api/info": annotation.info,
        "/api/photos": annotation.photos,
        "/api/image": annotation.image,
        "/api/photo": annotation.about_photo,
        "/api/ready": annotation.ready,
        "/api/export": annotation.export,
        "/ledger": annotation.ledger,
    }
    posts = {
        "/api/predict": annotation.predict,
        "/api/masks": annotation.save,
        "/api/masks/remove": annotation.remove,
        "/api/masks/restore": annotation.restore,
        "/api/masks/label": annotation.label,
        "/api/done": annotation.done,
        "/api/reload": annotation.reload,
    }
    routes = [Route(path, guard.get(function)) for path, function in gets.items()]
    routes += [Route(path, guard.post(f), methods=["POST"]) for path, f in posts.items()]
    routes += [Route("/", guard.get(_page)), Route("/static/{name}", guard.get(_static))]
    return Starlette(routes=routes, exception_handlers={HTTPException: _error, 500: _broken})


class _Guard:
    """What is checked before any request is answered."""

    def __init__(self, hosts: set[str] | None, token: str | None) -> None:
        self.hosts, self.token = hosts, token
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, function: Callable[[Request, str], Any]) -> Callable:
        """An endpoint of a function of (request, annotator)."""

        async def endpoint(request: Request) -> Response:
            given = request.query_params.get("token")
            if self.token and given and request.url.path == "/" and self._fits(given):
                response = RedirectResponse("/", 303)
                response.set_cookie("token", given, httponly=True, samesite="strict")
                return response
            return await self._answer(request, lambda who: function(request, who))

        return endpoint

    def post(self, function: Callable[[dict[str, Any], str], Any]) -> Callable:
        """An endpoint of a function of (body, annotator)."""

        async def endpoint(request: Request) -> Response:
            origin = request.headers.get("origin")
            if origin and origin.split("//")[-1] != request.headers.get("host"):
                raise HTTPException(403, "Origin: expected this page's own")
            if request.headers.get("content-type", "").split(";")[0] != "application/json":
                raise HTTPException(415, "Content-Type: expected application/json")
            body = await _body(request)
            return await self._answer(request, lambda who: function(body, who))

        return endpoint

    async def _answer(self, request: Request, function: Callable[[str], Any]) -> Response:
        self._check(request)
        try:
            who = checks.annotator(unquote(request.headers.get("x-annotator") or ""))
            self._limit(f"{request.client.host if request.client else ''} {who}")
            result = await run_in_threadpool(function, who)
        except NotReady as error:
            return JSONResponse({"error": str(error), "status": str(error)}, 409, HEADERS)
        except StoreError as error:
            return JSONResponse({"error": str(error)}, 507, HEADERS)
        except ValueError as error:
            return JSONResponse({"error": " ".join(str(error).split())}, 400, HEADERS)
        response = result if isinstance(result, Response) else JSONResponse(result)
        response.headers.update({k: v for k, v in HEADERS.items() if k not in response.headers})
        return response

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "").rsplit(":", 1)[0].strip("[]").lower()
        if self.hosts is not None and host not in self.hosts:
            raise HTTPException(403, "Host: this page is not served under that name")
        if self.token:
            given = request.headers.get("x-token") or request.cookies.get("token") or ""
            if not self._fits(given):
                raise HTTPException(401, "token: open the address that was printed at the start")

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def _limit(self, who: str) -> None:
        now = time.monotonic()
        with self._lock:
            left, last = self._buckets.pop(who, (BURST, now))
            left = min(BURST, left + (now - last) * RATE)
            self._buckets[who] = max(left - 1, 0), now
            if len(self._buckets) > 1000:
                self._buckets.popitem(last=False)
        if left < 1:
            raise HTTPException(429, f"too many requests: at most {RATE:.0f} a second")


async def _body(request: Request) -> dict[str, Any]:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise HTTPException(413, f"the request is over {MOST_BYTES >> 20} MB")
        parts.append(part)
    try:
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is no JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "the request must be a JSON object")
    return body


def _page(request: Request, who: str) -> Response:
    return _asset("index.html")


def _static(request: Request, who: str) -> Response:
    return _asset(request.path_params["name"])


def _asset(name: str) -> Response:
    kind = STATIC.get(Path(name).suffix)
    known = {entry.name for entry in files("sam_jax.engine").joinpath("static").iterdir()}
    if kind is None or name not in known:
        raise HTTPException(404, "no such file")
    content = files("sam_jax.engine").joinpath("static", name).read_bytes()
    return Response(content, media_type=kind)


def _error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": str(error.detail)}, error.status_code, HEADERS)


def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the server failed: {type(error).__name__}"}, 500, HEADERS)
