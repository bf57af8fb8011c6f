"""The calculator's page, as an application that answers on this machine only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramkit.errors import InvalidArgumentError, MissingExtraError, VramkitError
from vramkit.estimate._targets import targets
from vramkit.estimate.config._advice import advise, estimate_of
from vramkit.estimate.config._architecture import Architecture
from vramkit.estimate.config._catalogue import catalogue, configuration_of
from vramkit.estimate.config._command import read_options
from vramkit.estimate.config._gguf import gguf_kinds
from vramkit.estimate.config._parameters import count_parameters
from vramkit.estimate.config._policies import OPTIMIZERS, POLICIES
from vramkit.estimate.config._reading import read_model
from vramkit.estimate.config._results import limited
from vramkit.estimate.config._schemes import scheme_names

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Nothing from elsewhere is loaded, and nothing is sent elsewhere.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; "
    "form-action 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_MOST_BYTES = 1 << 20


def create_app(hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> Starlette:
    """Make the application.

    Args:
        hosts: Names under which a browser may ask for it; others are refused, so that no page of
            another site can reach it by a name that leads here.

    Raises:
        MissingExtraError: Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route
    except ImportError as err:
        raise missing() from err
    routes = [Route(path, _file(name)) for path, name in _FILES.items()]
    routes.append(Route("/api/choices", _choices))
    routes.append(Route("/api/estimate", _estimate, methods=["POST"]))
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[trusted])


def missing() -> MissingExtraError:
    """The error where the extra is not installed."""
    return MissingExtraError(
        "the calculator's page needs Starlette and uvicorn: pip install 'vramkit[web]'; "
        "without them use the command line"
    )


def _file(name: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        del request
        from starlette.responses import Response

        path = _FOLDER / name
        kind = _KINDS[path.suffix]
        return Response(path.read_bytes(), media_type=kind, headers=_HEADERS)

    return answer


def _choices(request: Request) -> Response:
    """What can be chosen."""
    del request
    return _json(
        {
            "models": [{"name": each.name, "title": each.title} for each in catalogue()],
            "targets": [
                {"name": each.name, "title": each.title, "bytes": each.total_bytes}
                for each in targets()
            ],
            "weights": ["checkpoint", *scheme_names(), *gguf_kinds()],
            "policies": {name: policy.meaning for name, policy in POLICIES.items()},
            "optimizers": OPTIMIZERS,
        }
    )


async def _estimate(request: Request) -> Response:
    """Estimate what the body asks for."""
    from starlette.concurrency import run_in_threadpool

    try:
        wanted = await _body(request)
        return _json(await run_in_threadpool(answer_of, wanted))
    except VramkitError as err:
        return _json({"error": str(err)}, status=422)


async def _body(request: Request) -> dict[str, Any]:
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > _MOST_BYTES:
            raise InvalidArgumentError("the request is larger than any configuration")
    try:
        wanted = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise InvalidArgumentError(f"the request is not valid JSON: {err}") from err
    if not isinstance(wanted, dict):
        raise InvalidArgumentError("the request is not a JSON object")
    return wanted


def answer_of(wanted: dict[str, Any]) -> dict[str, Any]:
    """Answer one request of the page.

    Args:
        wanted: ``mode``, ``model`` or ``own`` (a configuration), ``target``, ``budget`` and
            ``options``.

    Raises:
        VramkitError: Something of it cannot be used.
    """
    mode, target = wanted.get("mode"), wanted.get("target")
    given = wanted.get("options")
    if mode not in ("serve", "train") or not isinstance(target, str) or not isinstance(given, dict):
        raise InvalidArgumentError("the request needs a mode, a target and options")
    budget = wanted.get("budget") or None
    for name in (target, budget):
        if isinstance(name, str) and name.endswith(".json"):
            raise InvalidArgumentError(
                f"{name!r} is a file, and the page reads no files; use vramkit estimate --config"
            )
    model = _model_of(wanted)
    options = read_options(mode, {**given, "budget": budget})
    gpu = limited(target, budget)
    estimate = estimate_of(model, options, gpu)
    return {
        "estimate": {**estimate.as_dict(), "fits": estimate.fits()},
        "verdict": estimate.verdict(),
        "answers": estimate.answers(),
        "advice": [asdict(each) for each in advise(model, options, target=gpu)],
        "parameters": asdict(count_parameters(model)),
        "kinds": model.kinds(),
    }


def _model_of(wanted: dict[str, Any]) -> Architecture:
    """The model; a page may name none of the machine's files, and asks no hub."""
    own, name = wanted.get("own"), wanted.get("model")
    if isinstance(own, dict):
        return read_model(own)
    config = configuration_of(name) if isinstance(name, str) else None
    if config is None:
        raise InvalidArgumentError(f"the catalogue has no model {name!r}")
    return read_model(str(name).rsplit("/", 1)[-1].lower())


def _json(values: dict[str, Any], *, status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(values, status_code=status, headers=_HEADERS)
