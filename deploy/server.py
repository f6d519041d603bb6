"""Prefect's server with its UI, on loopback: `python -m deploy.server PORT`.

The same application as `prefect server start` serves, with one header more. The UI asks an
analytics host for its configuration even where analytics are off; a content security policy keeps
every request of the browser on this server.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import uvicorn
from fastapi import Request, Response
from prefect.server.api.server import create_app

from deploy.places import HOST


def content_security_policy(port: int) -> str:
    """What pages of the UI may load, and which addresses they may talk to: this server's alone."""
    here = f"'self' http://{HOST}:{port} ws://{HOST}:{port}"
    rules = {
        "default-src": "'self'",
        "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": here,
        "worker-src": "'self' blob:",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def serve(port: int) -> None:
    """Serves until a signal ends it. Settings come from the environment (`deploy.places`)."""
    app = create_app(final=True)
    policy = content_security_policy(port)

    @app.middleware("http")
    async def confine(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = policy
        return response

    uvicorn.run(app, host=HOST, port=port, log_level="warning", timeout_graceful_shutdown=5)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
