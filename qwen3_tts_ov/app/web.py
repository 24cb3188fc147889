"""The page for people: files of this package, which ask nothing of any other place."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# A browser runs no script but these files, loads nothing from elsewhere, and shows the page in no frame.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}  # which Windows may know otherwise


def routes() -> list[Route]:
    """The routes of the page, at `/`, and of its files."""
    files = {path.name: path.read_bytes() for path in resources.files(__package__).joinpath("page").iterdir()}

    def route(path: str, name: str) -> Route:
        answer = Response(files[name], media_type=_TYPES[PurePath(name).suffix], headers=_HEADERS)

        async def send(_: Request) -> Response:
            return answer

        return Route(path, send)

    return [route("/", "index.html"), *(route(f"/page/{name}", name) for name in sorted(files) if name != "index.html")]
