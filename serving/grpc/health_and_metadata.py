"""The gRPC methods that report: health and metadata of the server and its models."""

import asyncio
from collections.abc import Callable

import grpc

from trpo_tf.serving.codecs.grpc_messages import (
    HEALTH,
    HEALTH_CHECK,
    INFERENCE,
    MODEL_METADATA,
    MODEL_READY,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
)
from trpo_tf.serving.codecs.v2_grpc import Message, from_document
from trpo_tf.serving.codecs.v2_json import model_metadata, server_metadata
from trpo_tf.serving.errors import quoted
from trpo_tf.serving.grpc.statuses import CallError, unknown_model
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Catalog


class Information:
    """Answers from the catalog that `current` returns; once `stopping` is set, nothing is ready."""

    def __init__(self, current: Callable[[], Catalog], options: ServeOptions, stopping: asyncio.Event) -> None:
        self._current, self._options, self._stopping = current, options, stopping

    async def server_live(self, _request: Message) -> Message:
        """Answer ServerLive."""
        return SERVER_LIVE.response(live=True)

    async def server_ready(self, _request: Message) -> Message:
        """Answer ServerReady."""
        return SERVER_READY.response(ready=self.is_ready())

    async def model_ready(self, request: Message) -> Message:
        """Answer ModelReady; an empty version means any."""
        release = self._current().releases.get(request.name)
        is_there = release is not None and (not request.version or request.version in release.versions)
        return MODEL_READY.response(ready=is_there and not self._stopping.is_set())

    async def server_metadata(self, _request: Message) -> Message:
        """Answer ServerMetadata."""
        options = self._options
        document = server_metadata(has_repository=options.repository_api, keeps_sequences=options.kept_sequences > 0)
        return from_document(SERVER_METADATA.response, document)

    async def model_metadata(self, request: Message) -> Message:
        """Answer ModelMetadata. Raises `CallError`."""
        release = self._current().releases.get(request.name)
        if release is None or (request.version and request.version not in release.versions):
            raise unknown_model(request.name, request.version)
        names = list(release.versions)[::-1]  # newest first
        manifest = release.versions[request.version or names[0]].policy.manifest
        return from_document(MODEL_METADATA.response, model_metadata(manifest, *names))

    async def health_check(self, request: Message) -> Message:
        """Answer the health service's Check. Raises `CallError`."""
        if (status := self.health(request.service)) == "SERVICE_UNKNOWN":
            raise CallError(grpc.StatusCode.NOT_FOUND, f"there is no service {quoted(request.service)}")
        return HEALTH_CHECK.response(status=status)

    def is_ready(self) -> bool:
        """Return whether the server is ready."""
        return not self._stopping.is_set() and self._current().is_ready

    def health(self, service: str) -> str:
        """Return the state of a service, as the health service names it; an empty name means the server."""
        if service not in ("", INFERENCE, HEALTH):
            return "SERVICE_UNKNOWN"
        return "SERVING" if self.is_ready() else "NOT_SERVING"
