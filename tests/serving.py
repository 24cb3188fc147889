"""The HTTP server on a free port of loopback, for tests that are its clients."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn
from starlette.types import ASGIApp

from tests.conftest import until

SPEECH = "/v1/audio/speech"


@contextmanager
def served(app: ASGIApp, port: int = 0) -> Iterator[httpx2.Client]:
    """Serves `app`, and gives a client for it."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)


def idle(client: httpx2.Client, slots: int = 1) -> bool:
    """Whether every slot has been given back and nobody waits."""
    health = client.get("/health").json()
    return health["free_slots"] == slots and health["waiting"] == 0
