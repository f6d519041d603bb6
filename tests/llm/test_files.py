"""Writes are whole or not at all, conditions have one winner, and errors say what to do."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm import files
from llm.errors import StorageError
from tests.s3_server import Proxy, S3Server

RACERS, RACING_PROCESSES = 16, 4


def in_child(code: str, *args: str) -> subprocess.Popen[str]:
    """A Python process that runs `code`, its standard input and output being pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_what_is_put_is_read_back_and_replaced_by_the_next(store_root: str) -> None:
    url = f"{store_root}/a/b.bin"
    files.put(url, b"first")
    files.put(url, b"second")
    assert files.read_bytes(url) == b"second"
    assert (files.exists(url), files.size(url)) == (True, 6)
    assert files.list_urls(store_root) == [url]


def test_a_file_is_copied_whole_and_readable_by_others(store_root: str, tmp_path: Path) -> None:
    body = random.Random(1).randbytes(3_000_001)
    source = tmp_path / "source"
    source.write_bytes(body)
    url = f"{store_root}/copy"
    files.put_file(url, source)
    assert files.read_bytes(url) == body
    if not files.is_s3(url):
        assert files.local_path(url).stat().st_mode & 0o777 == 0o644


def test_a_missing_file_is_none_of_a_batch_and_an_error_alone(store_root: str) -> None:
    there, missing = f"{store_root}/there", f"{store_root}/missing"
    files.put(there, b"x")
    assert files.read_many([missing, there]) == [None, b"x"]
    assert files.read_many([]) == []
    assert files.read_versioned(missing) is None
    assert not files.exists(missing)
    assert files.list_urls(f"{store_root}/nothing") == []
    for read in (files.read_bytes, files.size, files.open_for_reading):
        with pytest.raises(FileNotFoundError):
            read(missing)


def test_ranges_of_a_file_can_be_read(store_root: str) -> None:
    files.put(f"{store_root}/f", b"0123456789")
    with files.open_for_reading(f"{store_root}/f") as file:
        file.seek(4)
        assert file.read(3) == b"456"


def test_deleting_twice_is_deleting_once(store_root: str) -> None:
    url = f"{store_root}/f"
    files.put(url, b"x")
    files.delete(url)
    files.delete(url)
    assert not files.exists(url)


def test_create_succeeds_once_and_again_only_with_the_same_body(store_root: str) -> None:
    url = f"{store_root}/f"
    assert files.create(url, b"mine")
    assert not files.create(url, b"theirs")
    assert files.create(url, b"mine"), "a reply lost on the way is no conflict"
    assert files.read_bytes(url) == b"mine"
    with pytest.raises(ValueError, match="empty"):
        files.create(f"{store_root}/g", b"")


def test_swap_replaces_only_what_was_seen(store_root: str) -> None:
    url = f"{store_root}/ref"
    assert files.swap(url, None, b"1")
    assert not files.swap(url, None, b"2")
    seen = files.read_versioned(url)
    assert seen is not None
    assert seen.body == b"1"
    assert files.swap(url, seen, b"3")
    assert not files.swap(url, seen, b"4")
    assert files.swap(url, seen, b"3"), "a reply lost on the way is no conflict"
    assert files.read_bytes(url) == b"3"
    stale = files.read_versioned(url)
    files.delete(url)
    assert not files.swap(url, stale, b"5")


@pytest.mark.parametrize("write", ["create", "swap"])
def test_one_of_sixteen_racing_threads_wins(store_root: str, write: str) -> None:
    url = f"{store_root}/contended"
    seen = None
    if write == "swap":
        files.put(url, b"before")
        seen = files.read_versioned(url)

    def attempt(racer: int) -> bool:
        return files.swap(url, seen, b"racer %d" % racer)

    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(attempt, range(RACERS)))
    assert won.count(True) == 1
    assert files.read_bytes(url) == b"racer %d" % won.index(True)


RACE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from llm import files
url, me, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = files.read_versioned(url + "/swapped")
print("ready", flush=True)
sys.stdin.readline()
def attempt(thread):
    body = f"{me}.{thread}".encode()
    return files.create(url + "/created", body), files.swap(url + "/swapped", seen, body)
with ThreadPoolExecutor(threads) as pool:
    outcomes = list(pool.map(attempt, range(threads)))
print(sum(o[0] for o in outcomes), sum(o[1] for o in outcomes))
"""


def test_one_of_sixteen_racers_in_several_processes_wins(store_root: str) -> None:
    files.put(f"{store_root}/swapped", b"before")
    threads = str(RACERS // RACING_PROCESSES)
    racers = [in_child(RACE, store_root, str(n), threads) for n in range(RACING_PROCESSES)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    outcomes = [racer.communicate("go\n") for racer in racers]
    wins = [[int(n) for n in out.split()] for out, _ in outcomes]
    assert [sum(column) for column in zip(*wins, strict=True)] == [1, 1]


WRITE_FOREVER = """
import hashlib, random, sys, tempfile
from pathlib import Path
from llm import files
root, seed = sys.argv[1], int(sys.argv[2])
source = Path(tempfile.mkdtemp()) / "source"
for n in range(10_000):
    body = random.Random(seed * 10_000 + n).randbytes(8_000_000)
    url = f"{root}/{hashlib.sha256(body).hexdigest()}"
    print(url, flush=True)
    if n % 2:
        files.put(url, body)
    else:
        source.write_bytes(body)
        files.put_file(url, source)
"""


def test_a_writer_killed_at_any_moment_leaves_no_partial_file(store_root: str) -> None:
    moments = random.Random(0)
    announced = 0
    for seed in range(3):
        writer = in_child(WRITE_FOREVER, store_root, str(seed))
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.stdout.readline()
        time.sleep(moments.uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
        announced += 2 + len(writer.communicate()[0].splitlines())
    found = files.list_urls(store_root)
    assert 3 <= len(found) <= announced
    for url in found:
        assert hashlib.sha256(files.read_bytes(url)).hexdigest() == url.rsplit("/", 1)[1]


WRITE_TOO_MUCH = """
import resource, sys
from pathlib import Path
from llm import files
from llm.errors import StorageError
folder, source = sys.argv[1], Path(sys.argv[2])
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
body = source.read_bytes()
for name, write in {
    "put": lambda url: files.put(url, body),
    "put_file": lambda url: files.put_file(url, source),
    "create": lambda url: files.create(url, body),
}.items():
    try:
        write(f"{folder}/{name}")
    except StorageError as error:
        print(error)
"""


def assert_no_room_and_nothing_visible(output: str, folder: Path) -> None:
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"{folder}/{name}" for name in ("put", "put_file", "create")
    ]
    assert all("there is no room" in line and "free some room" in line for line in lines)
    assert list(folder.iterdir()) == []


def test_a_write_cut_off_in_the_middle_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "store"
    source.write_bytes(bytes(300_000))
    child = in_child(WRITE_TOO_MUCH, str(folder), str(source), "100000")
    assert_no_room_and_nothing_visible(child.communicate()[0], folder)


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "store"
    source.write_bytes(bytes(300_000))
    folder.mkdir()
    inside = (
        'mount -t tmpfs -o size=100k none "$1" || exit 77; shift; "$@" && [ -z "$(ls -A "$0")" ]'
    )
    program = [sys.executable, "-c", WRITE_TOO_MUCH, str(folder), str(source), "0"]
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", inside, str(folder), str(folder), *program],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    except FileNotFoundError:
        pytest.skip("no unshare here to mount a small disk with")
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert_no_room_and_nothing_visible(done.stdout, folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_found_full_only_when_syncing_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_room(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    files.put(f"{tmp_path}/f", b"before")
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StorageError, match="free some room"):
        files.put(f"{tmp_path}/f", b"after")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def operations(url: str, source: Path) -> dict[str, Callable[[], object]]:
    """Every way to touch a URL, by name."""
    version = files.Versioned(b"x", '"0"')
    return {
        "put": lambda: files.put(url, b"x"),
        "put_file": lambda: files.put_file(url, source),
        "create": lambda: files.create(url, b"x"),
        "swap": lambda: files.swap(url, version, b"y"),
        "read_bytes": lambda: files.read_bytes(url),
        "read_many": lambda: files.read_many([url]),
        "read_versioned": lambda: files.read_versioned(url),
        "open_for_reading": lambda: files.open_for_reading(url),
        "exists": lambda: files.exists(url),
        "size": lambda: files.size(url),
        "delete": lambda: files.delete(url),
        "list_urls": lambda: files.list_urls(url),
    }


def test_a_wrong_key_is_told_by_url_and_variable(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    files.put(f"{s3_root}/f", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    for name, touch in operations(f"{s3_root}/f", source).items():
        with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as caught:
            touch()
        assert f"{s3_root}/f" in str(caught.value), name


def test_a_server_that_is_not_there_is_told_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    began = time.monotonic()
    for touch in operations("s3://bucket/f", source).values():
        with pytest.raises(StorageError, match=r"s3://bucket/f.*AWS_ENDPOINT_URL"):
            touch()
    assert time.monotonic() - began < 60


def test_a_server_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, s3_server: S3Server
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(files, "READ_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"s3://bucket/f.*AWS_ENDPOINT_URL"):
            files.read_bytes("s3://bucket/f")
        assert time.monotonic() - began < 20


def test_a_connection_that_breaks_once_is_only_a_delay(
    s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(2_000_000)
    with Proxy(s3_server.port, breaks=1, after=500_000) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        files.put(f"{s3_root}/f", body)
        assert proxy.broken == 1
        assert files.read_bytes(f"{s3_root}/f") == body


def test_a_connection_that_always_breaks_leaves_nothing(
    s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(s3_server.port, breaks=1000, after=500_000) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
            files.put(f"{s3_root}/f", bytes(2_000_000))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    assert not files.exists(f"{s3_root}/f")


def test_a_bucket_that_is_not_there_is_told(s3_server: S3Server, s3_root: str) -> None:
    # An admin's key would create the bucket; a name this short cannot be one.
    with pytest.raises(StorageError, match=r"s3://x/f: writing"):
        files.put("s3://x/f", b"x")


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    url = f"{tmp_path}/file/below"
    writes = ("put", "put_file", "create", "read_bytes")
    for name in writes:
        with pytest.raises(StorageError, match=r"file/below.*a file lies where a folder should be"):
            operations(url, tmp_path / "file")[name]()


def test_a_place_where_nothing_can_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    for name in ("put", "put_file", "create"):
        with pytest.raises(StorageError, match=r"/proc/loam/f: writing"):
            operations("/proc/loam/f", tmp_path / "source")[name]()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(StorageError, match=r"closed/f: writing was refused.*owner and mode"):
        files.put(f"{closed}/f", b"x")


@pytest.mark.parametrize("name", ["a b", "100%25", "c#", "what?", "ünï"])
def test_any_folder_has_a_url_of_its_own(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    url = files.absolute_url(str(folder))
    files.put(f"{url}/f", b"x")
    assert (folder / "f").read_bytes() == b"x"
    assert files.list_urls(url) == [f"{url}/f"]
    assert files.absolute_url(url) == url


def test_other_schemes_are_refused_by_name() -> None:
    with pytest.raises(StorageError, match=r"gs://bucket/f: expected a path, file:// or s3://"):
        files.read_bytes("gs://bucket/f")


def test_secrets_stay_out_of_the_settings_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    assert "hush" not in repr(files.S3Settings.from_environment())
