"""Pages of the console, made once for each catalog: its files, the served models and recorded episodes."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from weakref import WeakKeyDictionary

import orjson

from trpo_tf.serving import __version__
from trpo_tf.serving.codecs.paths import part_of
from trpo_tf.serving.repository.catalog import Catalog, Model

_FILES = Path(__file__).parent / "static"

_CONTENT_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".mp4": b"video/mp4",
    ".gif": b"image/gif",
}

# No foreign and no inline sources. A script fetches an episode with the key, so the player gets it as a blob.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    b"media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = b"x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"


class Page(NamedTuple):
    """Response of one path. `headers` are whole lines; `is_open` says that it needs no key."""

    body: bytes
    content_type: bytes
    headers: bytes = _HEADERS
    is_open: bool = False


def console_pages(catalog: Catalog) -> dict[str, Page]:
    """Return a page for each path: the console's own files, and recorded episodes."""
    pages = dict(_STATIC)
    for model in _models(catalog):
        if model.episode is not None:
            content_type = _CONTENT_TYPES[Path(model.episode.file).suffix]
            pages[f"/{_episode_path(model)}"] = Page(model.episode.content, content_type)
        _described(model)  # fills the cache, so that the first request for the models is fast
    return pages


def console_models(catalog: Catalog) -> bytes:
    """Return the served versions with their manifests, as JSON."""
    models = [orjson.Fragment(_described(model)) for model in _models(catalog)]
    return orjson.dumps({"server": __version__, "models": models})


def _models(catalog: Catalog) -> Iterator[Model]:
    return (model for release in catalog.releases.values() for model in release.versions.values())


def _episode_path(model: Model) -> str | None:
    if model.episode is None:
        return None
    return f"console/models/{part_of(model.name)}/versions/{part_of(model.version)}/{model.episode.file}"


def _described(model: Model) -> bytes:
    """Return one version as JSON. It is cached, since its manifest may be long."""
    if model not in _DESCRIPTIONS:
        path, manifest = _episode_path(model), orjson.loads(model.policy.manifest.to_json())
        _DESCRIPTIONS[model] = orjson.dumps(
            {
                "name": model.name,
                "version": model.version,
                "episode": path and quote(path, safe="/%"),
                "manifest": manifest,
            }
        )
    return _DESCRIPTIONS[model]


_DESCRIPTIONS: WeakKeyDictionary[Model, bytes] = WeakKeyDictionary()


def _static_pages() -> dict[str, Page]:
    pages = {}
    for file in sorted(_FILES.iterdir()):
        path = "/" if file.name == "index.html" else f"/console/{file.name}"
        headers = b"content-security-policy: %b\r\n%b" % (_POLICY, _HEADERS)
        pages[path] = Page(file.read_bytes(), _CONTENT_TYPES[file.suffix], headers, is_open=True)
    return pages


_STATIC = _static_pages()
