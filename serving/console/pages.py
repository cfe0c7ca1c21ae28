"""What the console's paths answer, made once for a catalog: files, what is served, and recorded episodes."""

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from serving import __version__
from serving.catalog import Catalog, Model

_FILES = Path(__file__).parent

_CONTENT_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".mp4": b"video/mp4",
    ".gif": b"image/gif",
}

# Nothing from elsewhere, nothing inline. An episode is fetched with the key, so that its player has it as a blob.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    b"media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = b"x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\ncache-control: no-cache\r\n"


class Page(NamedTuple):
    """What one path answers. `headers` are whole lines; `is_open`: also without a key."""

    body: bytes
    content_type: bytes
    headers: bytes = _HEADERS
    is_open: bool = False


def console_pages(catalog: Catalog) -> dict[str, Page]:
    """A page for each path."""
    pages, models = dict(_STATIC), []
    for model in (model for release in catalog.releases.values() for model in release.versions.values()):
        path = None
        if model.episode is not None:
            path = f"console/models/{model.name}/versions/{model.version}/{model.episode.file}"
            pages[f"/{path}"] = Page(model.episode.content, _CONTENT_TYPES[Path(model.episode.file).suffix])
        models.append(_described(model, path and quote(path)))
    content = orjson.dumps({"server": __version__, "models": models})
    return pages | {"/console/models": Page(content, b"application/json")}


def _described(model: Model, episode: str | None) -> dict[str, Any]:
    manifest = orjson.loads(model.policy.manifest.to_json())
    return {"name": model.name, "version": model.version, "episode": episode, "manifest": manifest}


def _static_pages() -> dict[str, Page]:
    pages = {}
    for file in sorted(_FILES.iterdir()):
        if file.suffix in (".html", ".js", ".css", ".svg"):
            path = "/" if file.name == "index.html" else f"/console/{file.name}"
            headers = b"content-security-policy: %b\r\n%b" % (_POLICY, _HEADERS)
            pages[path] = Page(file.read_bytes(), _CONTENT_TYPES[file.suffix], headers, is_open=True)
    return pages


_STATIC = _static_pages()
