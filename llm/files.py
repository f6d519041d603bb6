"""Files at a URL, whole or not at all: on a local disk and in S3-compatible storage alike.

Three ways to write, each of which leaves either the whole file or what was there before:
`put` replaces, `create` succeeds once, `swap` replaces only what the caller has read.
Processes share URLs, never file systems: an s3fs object does not survive a fork.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import filelock
import pyarrow.fs as pafs

from llm.errors import StorageError

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, ATTEMPTS = 5, 20, 4
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class S3Settings:
    """What every S3 client here is built from: the standard AWS variables, and nothing else."""

    endpoint_url: str | None
    region: str
    key: str | None
    secret: str | None
    token: str | None

    @classmethod
    def from_environment(cls) -> S3Settings:
        env = os.environ
        return cls(
            endpoint_url=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
            region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
            key=env.get("AWS_ACCESS_KEY_ID"),
            secret=env.get("AWS_SECRET_ACCESS_KEY"),
            token=env.get("AWS_SESSION_TOKEN"),
        )

    def __repr__(self) -> str:
        return f"S3Settings(endpoint_url={self.endpoint_url!r}, region={self.region!r})"


@cache
def _s3(settings: S3Settings, pid: int) -> Any:
    import s3fs

    fs = s3fs.S3FileSystem(
        key=settings.key,
        secret=settings.secret,
        token=settings.token,
        endpoint_url=settings.endpoint_url,
        client_kwargs={"region_name": settings.region},
        # s3fs's retries multiply botocore's: leave the retrying to one of them.
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1},
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = ATTEMPTS
    return fs


def _s3_here() -> Any:
    return _s3(S3Settings.from_environment(), os.getpid())


@cache
def _arrow_s3(settings: S3Settings, pid: int) -> pafs.FileSystem:
    scheme, _, endpoint = (settings.endpoint_url or "").rpartition("://")
    return pafs.S3FileSystem(
        access_key=settings.key,
        secret_key=settings.secret,
        session_token=settings.token,
        region=settings.region,
        endpoint_override=endpoint or None,
        scheme=scheme or "https",
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=READ_TIMEOUT_S,
    )


def is_s3(url: str) -> bool:
    return url.startswith("s3://")


def local_path(url: str) -> Path:
    """The path of a `file://` URL or of a plain path.

    As in fsspec nothing is quoted in it, so that any folder has a URL: `%`, `#` and `?` are
    themselves. Raises StorageError for another scheme.
    """
    path = url.removeprefix("file://")
    if "://" in path:
        raise StorageError(f"{url}: expected a path, file:// or s3://")
    return Path(path)


def absolute_url(url: str) -> str:
    """`url` with a scheme: a plain path becomes an absolute file:// URL; no slash at the end."""
    if is_s3(url):
        return url.rstrip("/")
    return "file://" + str(local_path(url).absolute()).rstrip("/")


def arrow_filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """A pyarrow file system and the path in it, for projected reads of Parquet."""
    if is_s3(url):
        return _arrow_s3(S3Settings.from_environment(), os.getpid()), url.removeprefix("s3://")
    return pafs.LocalFileSystem(), str(local_path(url))


@contextmanager
def explained(url: str, doing: str) -> Iterator[None]:
    """Turns a storage client's own errors into one that names the URL and says what to do.

    FileNotFoundError stays what it is, except when writing, where it is the bucket or folder.
    """
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        if doing != "writing":
            raise
        raise StorageError(
            f"{url}: writing failed ({error}); create the bucket or folder, or name another"
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(
            f"{url}: {doing} failed ({error}); a file lies where a folder should be: remove it or "
            "name another folder"
        ) from error
    except PermissionError as error:
        hint = (
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
            if is_s3(url)
            else "check the owner and mode of the folder"
        )
        raise StorageError(f"{url}: {doing} was refused ({error}); {hint}") from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageError(
                f"{url}: there is no room for it, the disk is full or a limit is reached "
                f"({error}); free some room and run again"
            ) from error
        look = "AWS_ENDPOINT_URL, the AWS keys and the network" if is_s3(url) else "the disk"
        raise StorageError(f"{url}: {doing} failed: {error}; check {look}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in {"botocore", "aiobotocore", "aiohttp"}:
            endpoint = S3Settings.from_environment().endpoint_url or "AWS"
            raise StorageError(
                f"{url}: {doing} failed at {endpoint}: {error}; check AWS_ENDPOINT_URL, the AWS "
                "keys and the network"
            ) from error
        raise


def read_bytes(url: str) -> bytes:
    """The file's content. Raises FileNotFoundError or StorageError."""
    with explained(url, "reading"):
        return _s3_here().cat_file(url) if is_s3(url) else local_path(url).read_bytes()


def read_many(urls: Sequence[str]) -> list[bytes | None]:
    """The content of each file, None where there is none: one batch of requests on S3."""
    if not urls:
        return []
    if is_s3(urls[0]):
        with explained(urls[0], "reading"):
            found = _s3_here().cat(list(urls), on_error="return")
            found = {"s3://" + key.removeprefix("s3://"): body for key, body in found.items()}
            for body in found.values():
                if isinstance(body, Exception) and not isinstance(body, FileNotFoundError):
                    raise body
        return [body if isinstance(body := found[url], bytes) else None for url in urls]
    return [_read_or_none(url) for url in urls]


def _read_or_none(url: str) -> bytes | None:
    try:
        return read_bytes(url)
    except FileNotFoundError:
        return None


def read_ranges(urls: Sequence[str], firsts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """`sizes` bytes of each file, from `firsts` on: one batch of requests on S3.

    Raises FileNotFoundError or StorageError.
    """
    ranges = [(*wanted, wanted[1] + wanted[2]) for wanted in zip(urls, firsts, sizes, strict=True)]
    if not urls or not is_s3(urls[0]):
        return [_read_range(url, first, size) for url, first, size, _ in ranges]
    # An empty range is no range to S3.
    asked = [(url, first, end) for url, first, size, end in ranges if size]
    with explained(urls[0], "reading"):
        found = iter(_s3_here().cat_ranges(*map(list, zip(*asked, strict=True))) if asked else [])
        bodies = [next(found) if size else b"" for size in sizes]
        for body in bodies:
            if isinstance(body, Exception):
                raise body
    return bodies


def _read_range(url: str, first: int, size: int) -> bytes:
    with explained(url, "reading"), local_path(url).open("rb") as file:
        file.seek(first)
        return file.read(size)


def sha256(body: bytes) -> str:
    """sha256 of the bytes, as 64 hex digits."""
    return hashlib.sha256(body).hexdigest()


def open_for_reading(url: str) -> IO[bytes]:
    """A seekable binary file; on S3 it fetches ranges. Raises FileNotFoundError."""
    with explained(url, "reading"):
        if is_s3(url):
            return cast(IO[bytes], _s3_here().open(url, "rb", block_size=1 << 20))
        return local_path(url).open("rb")


def exists(url: str) -> bool:
    with explained(url, "looking"):
        return bool(_s3_here().exists(url)) if is_s3(url) else local_path(url).exists()


def size(url: str) -> int:
    """Bytes of the file. Raises FileNotFoundError."""
    with explained(url, "looking"):
        return int(_s3_here().size(url)) if is_s3(url) else local_path(url).stat().st_size


def put(url: str, body: bytes) -> None:
    """Writes the whole file, replacing what was there."""
    with explained(url, "writing"):
        if is_s3(url):
            _s3_here().pipe_file(url, body)
        else:
            with _staged(local_path(url), io.BytesIO(body)) as staged:
                os.replace(staged, local_path(url))


def put_file(url: str, source: Path) -> None:
    """Copies a local file to `url`, whole or not at all."""
    with explained(url, "writing"):
        if is_s3(url):
            _s3_here().put_file(str(source), url)
            return
        with source.open("rb") as body, _staged(local_path(url), body) as staged:
            os.replace(staged, local_path(url))


def create(url: str, body: bytes) -> bool:
    """Writes the file unless one is there. True when the file now holds `body`.

    A reply lost on the way looks like a conflict with oneself, so equal bytes count as success.
    Raises ValueError for an empty body, for which S3 servers lose the condition.
    """
    if not body:
        raise ValueError(f"{url}: an empty file cannot be created conditionally")
    with explained(url, "writing"):
        if is_s3(url):
            try:
                _s3_here().pipe_file(url, body, mode="create")
                return True
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            return _read_or_none(url) == body
        target = local_path(url)
        with _staged(target, io.BytesIO(body)) as staged:
            try:
                os.link(staged, target)
            except FileExistsError:
                return target.read_bytes() == body
            return True


@dataclass(frozen=True)
class Versioned:
    """A file's content and the mark by which `swap` knows it again."""

    body: bytes
    version: str


def read_versioned(url: str) -> Versioned | None:
    """The content and version of a file that moves by `swap`; None when there is none."""
    with explained(url, "reading"):
        if not is_s3(url):
            body = _read_or_none(url)
            return Versioned(body, hashlib.sha256(body).hexdigest()) if body is not None else None
        from fsspec.asyn import sync

        fs = _s3_here()
        bucket, _, key = url.removeprefix("s3://").partition("/")

        async def get() -> tuple[bytes, str]:
            reply = await fs._call_s3("get_object", Bucket=bucket, Key=key)
            async with reply["Body"] as stream:
                return await stream.read(), reply["ETag"]

        try:
            body, etag = sync(fs.loop, get)
        except FileNotFoundError:
            return None
        return Versioned(body, etag)


def swap(url: str, seen: Versioned | None, body: bytes) -> bool:
    """Replaces what was `seen` (None: nothing was there) by `body`. False when it has moved on."""
    if seen is None:
        return create(url, body)
    with explained(url, "writing"):
        if is_s3(url):
            bucket, _, key = url.removeprefix("s3://").partition("/")
            try:
                _s3_here().call_s3(
                    "put_object", Bucket=bucket, Key=key, Body=body, IfMatch=seen.version
                )
                return True
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            return _read_or_none(url) == body
        target = local_path(url)
        # flock is freed when its holder dies; the lock file itself stays and means nothing.
        with filelock.FileLock(str(target) + ".lock"):
            now = read_versioned(url)
            if now is None or now.version != seen.version:
                return now is not None and now.body == body
            put(url, body)
            return True


def delete(url: str) -> None:
    """Removes a file; nothing happens when it is not there."""
    with explained(url, "deleting"):
        if is_s3(url):
            if _s3_here().exists(url):
                _s3_here().rm_file(url)
        else:
            local_path(url).unlink(missing_ok=True)


def list_urls(prefix: str) -> list[str]:
    """Every file below `prefix`, recursively, sorted. Empty when there is no such folder."""
    with explained(prefix, "listing"):
        if is_s3(prefix):
            try:
                found = _s3_here().find(prefix.rstrip("/") + "/")
            except FileNotFoundError:
                return []
            # Some servers list a folder whose files are gone as a file of its own.
            urls = ("s3://" + key for key in found)
            return sorted(url for url in urls if url != prefix.rstrip("/"))
        root = local_path(prefix)
        return sorted(
            absolute_url(str(path))
            for path in root.rglob("*")
            if path.is_file() and not path.name.startswith(".staged-") and path.suffix != ".lock"
        )


@contextmanager
def _staged(target: Path, body: IO[bytes]) -> Iterator[str]:
    """A synced temporary file beside `target` that holds `body`; gone afterwards.

    What the caller links or renames it to is as durable as its content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".staged-")
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(body, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        yield name
        _sync_folder(target.parent)
    finally:
        Path(name).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
