"""REST protocols for inference: each parses requests and renders responses.

To add a protocol, write its class in a file of its own and add it to `PROTOCOLS`, or name it by an entry point.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from trpo_tf.serving.codecs import v2_binary
from trpo_tf.serving.codecs.parsing.body_limits import ENCODINGS, decompress
from trpo_tf.serving.codecs.paths import PREDICT
from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.codecs.tfserving import decode_instances, encode_predictions
from trpo_tf.serving.codecs.v2_json import decode_request, encode_response
from trpo_tf.serving.errors import RequestError, quoted
from trpo_tf.serving.inference.endpoint import InferenceEndpoint, failure_of
from trpo_tf.serving.inference.runners import Outputs
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.repository.catalog import Model
from trpo_tf.serving.rest.responses import JSON, RETRY, HttpError, Response, too_large
from trpo_tf.serving.support.entry_points import find_value

Body = bytes | bytearray

_STATUSES = {"no_sequence": 409, "busy": 503}
"""Statuses of errors by their kind, where they are neither 400 nor 500."""

Headers = Mapping[bytes, bytes]


class RestEndpoint(InferenceEndpoint):
    """One model version in one REST protocol."""

    def __init__(self, model: Model, options: ServeOptions, metrics: Metrics) -> None:
        super().__init__(model, options, metrics, "http")
        self._manifest = model.policy.manifest

    def parse(self, headers: Headers, body: Body) -> InferRequest | HttpError:
        """Parse a request, or return the refusal if it can't be parsed. It is pure, so a thread may run it.

        The refusal is returned, not raised: the frames of an error that a thread raised would hold the body in memory
        until cycles are collected.
        """
        try:
            if b"content-encoding" in headers:
                body = _decompressed(headers, body, self.options)
            return self.decode(body, headers)
        except RequestError as error:
            if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
                error = RequestError(f"{error}; it is a multipart form, send the JSON alone (curl: -d instead of -F)")
            return self.refusal(error)
        except Exception as error:  # noqa: BLE001 (each has its answer)
            return self.refusal(error)

    @abstractmethod
    def decode(self, body: Body, headers: Headers) -> InferRequest:
        """Decode a body that has no content coding. Raises `RequestError`."""

    @abstractmethod
    def render(self, request: InferRequest, outputs: Outputs) -> Response:
        """Encode the policy's outputs as a response."""

    def refusal(self, error: Exception) -> HttpError:
        """Return the refusal of a request that raised `error`. An unexpected `error` becomes its logged cause."""
        if isinstance(error, HttpError):
            error.response = error.response._replace(series=self.series)
            return error
        failure = failure_of(error)
        if failure.kind == "too_large":
            return too_large(self.options.max_body, self.series)
        status = _STATUSES.get(failure.kind, 400 if failure.is_clients else 500)
        headers = RETRY if status == 503 else b""
        refusal = HttpError(status, failure.message, headers, self.series, failure.kind)
        refusal.__cause__ = failure.fault
        return refusal


class V2Endpoint(RestEndpoint):
    """The Open Inference Protocol's `infer`, with its binary tensors."""

    def decode(self, body: Body, headers: Headers) -> InferRequest:
        """Decode a JSON body, which binary tensors may follow. Raises `RequestError`."""
        json_length = headers.get(v2_binary.HEADER)
        if json_length is None:
            try:
                return decode_request(body, self._manifest, max_batch=self.options.max_batch)
            except RequestError as error:
                if b"binary_data_size" not in body:
                    raise
                raise RequestError(f"{error}; binary tensors need the header {v2_binary.HEADER_NAME}") from None
        return v2_binary.decode_binary(body, json_length, self._manifest, max_batch=self.options.max_batch)

    def render(self, request: InferRequest, outputs: Outputs) -> Response:
        """Encode as JSON, followed by the tensors that were requested as binary."""
        manifest, version = self._manifest, self.model.version
        if not any(request.outputs.values()):
            content = encode_response(outputs, manifest, version, request.request_id)
            return Response(200, content, b"", JSON, self.series)
        content, length = v2_binary.encode_binary(outputs, request.outputs, manifest, version, request.request_id)
        header = b"%b: %d\r\n" % (v2_binary.HEADER, length)
        return Response(200, content, header, b"application/octet-stream", self.series)


class PredictEndpoint(RestEndpoint):
    """TensorFlow Serving's `predict`. Its response has no field for the version, so a header names it."""

    def __init__(self, model: Model, options: ServeOptions, metrics: Metrics) -> None:
        super().__init__(model, options, metrics)
        self._version = b"model-version: %b\r\n" % quote(model.version).encode()

    def decode(self, body: Body, headers: Headers) -> InferRequest:  # noqa: ARG002 (another protocol reads them)
        """Decode a JSON body. Raises `RequestError`."""
        return decode_instances(body, self._manifest, max_batch=self.options.max_batch)

    def render(self, request: InferRequest, outputs: Outputs) -> Response:  # noqa: ARG002 (nothing else can be asked)
        """Encode the actions alone as JSON."""
        content = encode_predictions(outputs[self._manifest.action.name])
        return Response(200, content, self._version, JSON, self.series)


class Protocol(NamedTuple):
    """Paths of a REST protocol: PREFIX/MODEL/SUFFIX, and PREFIX/MODEL/versions/VERSION/SUFFIX."""

    prefix: str
    suffix: str
    endpoint: type[RestEndpoint]


PROTOCOLS = (Protocol("/v2/models", "/infer", V2Endpoint), Protocol("/v1/models", PREDICT, PredictEndpoint))

ENTRY_POINTS = "trpo_tf.codecs"
"""The group in which an installed package names a `Protocol` of its own."""


def served_protocols(options: ServeOptions) -> tuple[Protocol, ...]:
    """Return the protocols to serve: all of this package, and those that `--codec` names.

    Raises `ServeError` for an unknown name, and for paths that another protocol has.
    """
    protocols = list(PROTOCOLS)
    for name in options.codec:
        added = find_value(name, {}, ENTRY_POINTS, Protocol, ServeError, "--codec")
        if any((added.prefix, added.suffix) == (other.prefix, other.suffix) for other in protocols):
            raise ServeError(f"--codec {name}: {added.prefix}/MODEL{added.suffix} is served already; leave it out")
        protocols.append(added)
    return tuple(protocols)


def _decompressed(headers: Headers, body: Body, options: ServeOptions) -> Body:
    """Undo the content coding of a body. Raises `HttpError` and `TooLargeError`."""
    encoding = headers[b"content-encoding"].lower().removeprefix(b"x-")  # x-gzip is gzip (RFC 9110, 8.4.1.3)
    if encoding in (b"identity", b""):
        return body
    if encoding not in ENCODINGS:
        named = quoted(headers[b"content-encoding"].decode("latin-1"))
        refusal = f"Content-Encoding {named} is not supported; send gzip, deflate or an uncompressed body"
        raise HttpError(415, refusal, b"accept-encoding: gzip, deflate\r\n")
    return decompress(body, encoding, options.max_body)
