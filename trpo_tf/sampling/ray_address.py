"""Find the Ray cluster that an address means, and agree with it on tokens, where Ray itself would try for minutes."""

import os
import socket
from typing import Any

from trpo_tf.errors import UserError
from trpo_tf.serving.errors import message_of

LOCAL = "local"
"""The address that starts Ray on this machine."""
_AUTO = "auto"
_VARIABLE, _MODE = "RAY_ADDRESS", "RAY_AUTH_MODE"
_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What every driver first asks a head, with an empty message."""
_SECONDS_TO_ANSWER = 10.0


def meant(address: str) -> tuple[str, str]:
    """Return the address, and the name of its source; `auto` stands for RAY_ADDRESS if that is set.

    Raises `UserError` for the address of a service of the cluster other than its head.
    """
    variable = os.environ.get(_VARIABLE) if address == _AUTO else None
    address, name = (variable, _VARIABLE) if variable else (address, "ray")
    scheme, separator, _ = address.rpartition("://")
    if separator:
        raise UserError(
            f"{name} can't be a {scheme}:// address; submit the run as a job of the cluster (ray job submit), or give "
            "HOST:PORT of its head from one of its machines"
        )
    return address, name


def found(address: str) -> str:
    """Return HOST:PORT of the cluster at an address that `meant` returned.

    If the cluster asks for a token, this process uses the user's from now on. Raises `UserError`, `OSError` or
    `ValueError` if there is no cluster, or if they do not agree.
    """
    from ray._private import services

    place: str = services.canonicalize_bootstrap_address(address)
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER).close()
    except OverflowError as error:
        raise ValueError(error) from error
    if os.environ.get("RAY_USE_TLS", "0") != "1":
        _agree_on_token(place)
    if not services.find_node_ids():
        raise UserError(
            f"this machine is none of the Ray cluster at {place}; make it one with ray start --address={place}, or "
            "submit the run as a job of the cluster: ray job submit"
        )
    return place


def unreachable(address: str, name: str, error: Exception) -> str:
    """Return a message: there is no cluster at the address, for the reason that `error` gives."""
    reason = " ".join(message_of(error).split())
    if "ersion mismatch" in reason:
        return f"the Ray cluster at {address} has another version: {reason}"
    where = f"{address}, which is {name}" if name == _VARIABLE else address
    return f"no Ray cluster at {where} ({reason}); give HOST:PORT of its head, or {LOCAL} to start Ray on this machine"


def _agree_on_token(place: str) -> None:
    """Use a token if, and only if, the cluster asks for one. Without that calls hang, or actors never start."""
    import ray._raylet

    internal: Any = ray._raylet

    asks = _refuses(place, "")
    uses = internal.get_authentication_mode() == internal.AuthenticationMode.TOKEN
    if uses and not asks:
        raise UserError(f"the Ray cluster at {place} takes no token; set {_MODE}=disabled")
    if not asks:
        return
    give = "give that of its head in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    loader = internal.AuthenticationTokenLoader.instance()
    loader.reset_cache()
    if not uses and _MODE in os.environ:
        raise UserError(f"the Ray cluster at {place} asks for a token; unset {_MODE}")
    if not loader.has_token(ignore_auth_mode=True):
        raise UserError(f"the Ray cluster at {place} asks for a token; {give}")
    os.environ[_MODE] = "token"
    internal.Config.initialize("")  # or Ray would not read the variable again
    if _refuses(place, loader.get_raw_token()):
        raise UserError(f"the Ray cluster at {place} refuses the token; {give}")


def _refuses(place: str, token: str) -> bool:
    """Return whether a head refuses a call with this token. Raises `OSError` if what listens there is no head."""
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CLUSTER_ID)(b"", timeout=_SECONDS_TO_ANSWER, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise ConnectionError("what listens there does not answer as the head of a Ray cluster") from error
    return False
