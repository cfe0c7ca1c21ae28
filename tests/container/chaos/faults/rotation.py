"""Replaces keys and certificates while the server runs, now and then by wrong ones, and has them read by SIGHUP."""

import hashlib
import http.client
import itertools
import os
import secrets
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.container.chaos.target import Target

CERTIFICATES = 3
READ_SECONDS = 5.0
"""Within which a new key must be taken by every worker, and an old one refused."""

PATIENCE_SECONDS = 2.0
IN_A_ROW = 8
"""Answers alike, each on a connection of its own, that show that all workers agree."""


def make_key() -> tuple[str, str]:
    """A key, and the hash that a file of keys has."""
    key = secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def make_certificates(folder: Path) -> None:
    """An authority in authority.pem, and server certificates that it signed, numbered."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-keyout", "authority.key", "-out", "authority.pem", "-subj", "/CN=authority")
    for number in range(CERTIFICATES):
        signed = ("-CA", "authority.pem", "-CAkey", "authority.key", "-addext", "subjectAltName=DNS:localhost")
        openssl(*new, *signed, "-keyout", f"{number}.key", "-out", f"{number}.pem", "-subj", f"/CN=server-{number}")


@dataclass
class Secrets:
    """What the server is given: a file of keys, and with TLS a certificate and its key.

    `steady` is a key that is always there, `passing` one that each rotation replaces.
    """

    folder: Path
    has_tls: bool
    steady: str = ""
    passing: str = ""
    rotations: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Make the first of each."""
        self.folder.mkdir()
        self.steady, self._steady_hash = make_key()
        self.write_keys()
        if self.has_tls:
            make_certificates(self.folder)
            self.write_certificate(0)

    def options(self, seen_as: str) -> tuple[str, ...]:
        """The server's options, where it sees the folder by another name."""
        tls = ("--tls-cert", f"{seen_as}/server.pem", "--tls-key", f"{seen_as}/server.key") if self.has_tls else ()
        return ("--keys", f"{seen_as}/keys", *tls)

    def write_keys(self) -> None:
        """Replace the passing key."""
        self.passing, passing_hash = make_key()
        self._replace("keys", f"steady:{self._steady_hash}\npassing:{passing_hash}\n")

    def write_certificate(self, number: int) -> None:
        """Replace certificate and key by those of this number."""
        for kind in ("pem", "key"):
            self._replace(f"server.{kind}", (self.folder / f"{number}.{kind}").read_text())

    def write_wrong_ones(self) -> None:
        """Files that can't be read; who serves goes on with what it has."""
        self._replace("keys", "no such thing as a key\n")
        if self.has_tls:
            self._replace("server.pem", "no certificate\n")

    def _replace(self, name: str, content: str) -> None:
        aside = self.folder / f"{name}.new"
        aside.write_text(content)
        aside.chmod(0o644)
        aside.rename(self.folder / name)


def rotate(given: Secrets, target: Target, server: int, period: float, is_over: threading.Event) -> None:
    """Replace, tell the server, and see what it takes, every `period` seconds."""
    for turn in itertools.count(1):
        if is_over.wait(period):
            return
        before = given.passing
        if turn % 3 == 0:
            given.write_wrong_ones()
            os.kill(server, signal.SIGHUP)
            given.rotations["wrong files"] += 1
            time.sleep(1)
            _expect(given, target, before, "200", "with wrong files there, a key that was right before", is_over)
            continue
        given.write_keys()
        if given.has_tls:
            given.write_certificate(turn % CERTIFICATES)
        os.kill(server, signal.SIGHUP)
        given.rotations["new files"] += 1
        _expect(given, target, given.passing, "200", "a new key", is_over)
        _expect(given, target, before, "401", "a key that was removed", is_over)
        if given.has_tls:
            _expect(given, target, given.passing, f"server-{turn % CERTIFICATES}", "the certificate", is_over)


def _expect(given: Secrets, target: Target, key: str, wanted: str, what: str, is_over: threading.Event) -> None:
    """Ask until the answer is this some times in a row. It is a fault if that takes too long.

    Time in which nothing is answered doesn't count: a worker may just hang.
    """
    ask = _common_name if wanted.startswith("server-") else _status
    left, alike, found = READ_SECONDS, 0, ""
    while left > 0 and not is_over.is_set():
        began = time.monotonic()
        try:
            found = ask(target, key)
        except (OSError, http.client.HTTPException):
            found = "nothing"
        if found in ("nothing", "503"):
            time.sleep(0.1)
            continue
        alike = alike + 1 if found == wanted else 0
        if alike == IN_A_ROW:
            return
        left -= min(time.monotonic() - began, 1.0) if found != wanted else 0.0
    if not is_over.is_set():
        given.faults.append(f"{what} is answered with {found}, not {wanted}")


def _status(target: Target, key: str) -> str:
    connection = target.connection(PATIENCE_SECONDS)
    try:
        connection.request("GET", "/v2", headers={"Authorization": f"Bearer {key}"})
        return str(connection.getresponse().status)
    finally:
        connection.close()


def _common_name(target: Target, _key: str) -> str:
    connection = target.connection(PATIENCE_SECONDS)
    try:
        connection.connect()
        certificate: Any = connection.sock.getpeercert()
        return str(dict(pair for (pair,) in certificate["subject"])["commonName"])
    finally:
        connection.close()
