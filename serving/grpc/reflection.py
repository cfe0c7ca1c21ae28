"""Answers of gRPC's reflection service, by which tools such as grpcurl and Postman learn the messages of a server."""

import grpc
from google.protobuf.message import DecodeError

from trpo_tf.serving.codecs.grpc_messages import REFLECTION_INFO, SERVICES, compiled_file, file_of
from trpo_tf.serving.codecs.v2_grpc import Message, broken_message
from trpo_tf.serving.errors import RequestError, quoted

LARGEST = 4096
"""Limit on the bytes of a question, which is repeated in its answer."""


def describe(content: bytes) -> bytes:
    """Return the answer to a question about the services. Raises `RequestError` if the bytes are no such question."""
    if len(content) > LARGEST:
        raise RequestError(f"the message is larger than {LARGEST} bytes")
    try:
        question = REFLECTION_INFO.request.FromString(content)
    except DecodeError:
        raise broken_message(REFLECTION_INFO) from None
    answer = REFLECTION_INFO.response(valid_host=question.host, original_request=question)
    try:
        _fill(answer, question)
    except KeyError as unknown:
        answer.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
        answer.error_response.error_message = f"there is no {unknown.args[0]}"
    return bytes(answer.SerializeToString())


def _fill(answer: Message, question: Message) -> None:
    """Set the part of the answer that is asked for. Raises `KeyError` with what there is not."""
    match question.WhichOneof("message_request"):
        case "list_services":
            for name in SERVICES:
                answer.list_services_response.service.add(name=name)
        case "file_by_filename":
            _add_file(answer, question.file_by_filename)
        case "file_containing_symbol":
            _add_file(answer, _file_of(question.file_containing_symbol))
        case "all_extension_numbers_of_type":
            _file_of(question.all_extension_numbers_of_type)
            answer.all_extension_numbers_response.base_type_name = question.all_extension_numbers_of_type
        case "file_containing_extension":
            raise KeyError("extension of a message")
        case _:
            raise RequestError("the message asks for nothing")


def _add_file(answer: Message, name: str) -> None:
    try:
        answer.file_descriptor_response.file_descriptor_proto.append(compiled_file(name))
    except KeyError:
        raise KeyError(f"file {quoted(name)}") from None


def _file_of(symbol: str) -> str:
    try:
        return file_of(symbol)
    except KeyError:
        raise KeyError(f"symbol {quoted(symbol)}") from None
