"""Files made by hand that would read other files, run foreign code, or confuse a parser: refused before they load."""

import json
import resource
import time

import pytest

from trpo_tf import serving
from trpo_tf.serving import BundleError
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.bundle.onnx_check import check_model

LARGEST = (1 << 64) - 1


def varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def field(number: int, value: int | bytes | str) -> bytes:
    """A field of a protobuf message: a number, or a text or message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def node(operator: str, *more: bytes) -> bytes:
    return field(4, operator) + b"".join(more)


def graph(*fields: bytes) -> bytes:
    return b"".join(fields)


def model(*fields: bytes) -> bytes:
    return field(1, 8) + b"".join(fields)


def of_node(operator: str, *more: bytes) -> bytes:
    return model(field(7, graph(field(1, node(operator, *more)))))


def nested(depth: int, operator: str) -> bytes:
    """A model of branches within branches, the innermost of which uses `operator`."""
    inside = graph(field(1, node(operator)))
    for _ in range(depth):
        inside = graph(field(1, node("If", field(5, field(1, "then_branch") + field(6, inside)))))
    return model(field(7, inside))


def weights(*more: bytes) -> bytes:
    return field(1, 2) + field(8, "w") + b"".join(more)


EXTERNAL = weights(field(13, field(1, "location") + field(2, "/etc/passwd")), field(14, 1))
SPARSE = field(1, EXTERNAL)


def test_models_that_were_exported_pass(bundle):
    check_model((bundle / "policy.onnx").read_bytes())


def test_standard_operators_pass_at_any_depth():
    check_model(of_node("Relu"))
    check_model(of_node("Relu", field(7, "ai.onnx")))
    check_model(nested(10, "Relu"))


FOREIGN = {
    "another domain": of_node("Gelu", field(7, "com.microsoft")),
    "a domain that is overwritten": of_node("Relu", field(7, "com.microsoft"), field(7, "")),
    "an operator that is overwritten": of_node("PyFunc", field(4, "Relu")),
    "a second graph, which parsers merge": model(field(7, graph()), field(7, graph(field(1, node("PyFunc"))))),
    "no operator at all": model(field(7, graph(field(1, field(3, "name"))))),
    "a random operator": of_node("RandomNormal"),
    "text, not tensors": of_node("StringNormalizer"),
    "a branch": nested(1, "PyFunc"),
    "a branch far inside": nested(20, "PyFunc"),
    "one of several graphs": of_node("Relu", field(5, field(11, graph(field(1, node("PyFunc")))))),
}


@pytest.mark.parametrize("where", FOREIGN)
def test_a_foreign_operator_is_refused(where):
    with pytest.raises(BundleError, match=r"^policy\.onnx uses '.*', which no policy is made of; export it again$"):
        check_model(FOREIGN[where])


def test_a_foreign_operator_is_named_with_its_domain():
    with pytest.raises(BundleError, match=r"'com\.microsoft\.Gelu'"):
        check_model(FOREIGN["another domain"])


OUTSIDE = {
    "initializer": model(field(7, graph(field(5, EXTERNAL)))),
    "sparse initializer": model(field(7, graph(field(15, SPARSE)))),
    "attribute": of_node("Constant", field(5, field(5, EXTERNAL))),
    "one of an attribute's tensors": of_node("Constant", field(5, field(10, EXTERNAL))),
    "sparse attribute": of_node("Constant", field(5, field(22, SPARSE))),
    "one of a branch": of_node("If", field(5, field(6, graph(field(5, EXTERNAL))))),
    "location alone": model(field(7, graph(field(5, weights(field(14, 1)))))),
    "location of more than 32 bits": model(field(7, graph(field(5, weights(field(14, (1 << 32) + 1)))))),
    "path alone": model(field(7, graph(field(5, weights(field(13, b"")))))),
}


@pytest.mark.parametrize("where", OUTSIDE)
def test_weights_in_another_file_are_refused(where):
    with pytest.raises(BundleError, match="keeps tensor 'w' in another file"):
        check_model(OUTSIDE[where])


OTHERWISE = {
    "functions of its own": model(field(7, graph()), field(25, field(1, "Relu"))),
    "training information": model(field(7, graph()), field(20, b"")),
    "no ONNX graph": model(),
    "ONNX Runtime's own format": b"\x18\0\0\0ORTM" + bytes(64),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_a_policy_does_without_is_refused(what):
    with pytest.raises(BundleError, match=what):
        check_model(OTHERWISE[what])


def test_a_file_of_two_formats_is_refused():
    polyglot = field(2, b"xxORTM") + of_node("Relu")
    assert polyglot[4:8] == b"ORTM"
    with pytest.raises(BundleError, match="own format"):
        check_model(polyglot)


DAMAGED = {
    "a length beyond the end": varint(7 << 3 | 2) + varint(100) + b"short",
    "the largest length": varint(7 << 3 | 2) + varint(LARGEST),
    "a number that never ends": b"\x80" * 1000,
    "a number cut off": b"\x08\x80",
    "a tag of more than 32 bits": varint((1 << 32) + (7 << 3 | 2)) + varint(0),
    "field number 0": b"\x00\x00",
    "a group": varint(7 << 3 | 3) + varint(7 << 3 | 4),
    "an unknown wire type": b"\x0f",
    "a fixed number cut off": varint(9 << 3 | 1) + b"1234567",
    "a number for a graph": field(7, 5),
    "a number for a tensor": model(field(7, graph(field(5, 5)))),
    "text": b"not a model",
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_refused(how):
    with pytest.raises(BundleError, match="is damaged"):
        check_model(DAMAGED[how])


def test_a_file_cut_off_anywhere_is_refused_or_is_a_model_still(bundle):
    content = (bundle / "policy.onnx").read_bytes()
    graph_ends = content.rindex(b"action") + 10  # the fields behind the graph may be lost
    for size in range(0, graph_ends, 7):
        with pytest.raises(BundleError):
            check_model(content[:size])


def test_a_changed_byte_raises_nothing_else(bundle):
    content = bytearray((bundle / "policy.onnx").read_bytes())
    for place in range(len(content)):
        changed = content.copy()
        changed[place] ^= 0xFF
        try:
            check_model(bytes(changed))
        except BundleError:
            continue


def test_nesting_has_an_end():
    with pytest.raises(BundleError, match="nests deeper than 100 messages"):
        check_model(nested(2_000, "Relu"))


def test_a_hostile_model_is_not_loaded(damaged):
    content = OUTSIDE["initializer"]
    (damaged / "policy.onnx").write_bytes(content)
    manifest = json.loads((damaged / "manifest.json").read_text())
    entry = FileEntry.of(content)
    manifest["files"]["policy.onnx"] = {"size": entry.size, "sha256": entry.sha256}
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="keeps tensor 'w' in another file"):
        serving.load(damaged)


@pytest.mark.parametrize("inner", [field(1, node("Relu")), field(1, field(4, "Abs") * 7), field(5, b""), field(99, 0)])
def test_a_file_of_millions_of_tiny_fields_is_given_up_soon(inner):
    """Two bytes a field: what they would be as messages is many times the file, here and in ONNX Runtime."""
    content = model(field(7, inner * (8 * 2**20 // len(inner))))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BundleError, match=r"has more than 250,000 fields"):
        check_model(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024
    assert time.process_time() - began < 10


def test_a_node_of_many_operators_and_domains_is_looked_at_once_each():
    names = field(4, "Relu") * 50_000 + field(7, "ai.onnx") * 50_000
    began = time.process_time()
    check_model(model(field(7, field(1, names))))
    assert time.process_time() - began < 10
