"""The files of a source: listed at any fsspec URL, named within their source, told changed."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llm.errors import ConfigError, StorageError
from tasks.importing.config import ImportConfig
from tasks.importing.readers import iso_utc

# A listing kept by s3fs goes stale.
OPTIONS = {"use_listings_cache": False}


@dataclass(frozen=True)
class FileRef:
    """A file of a source.

    `path` is relative to the source's root: the folder given, the fixed part of a glob, or the
    folder of a single file. `token` changes when the file does: its size with its ETag or time.
    """

    url: str
    path: str
    size: int
    token: str
    modified: str | None


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns a storage client's errors into one that names the URL and says what to do."""
    try:
        yield
    except (PermissionError, FileNotFoundError, ConfigError):
        raise
    except Exception as error:
        client = type(error).__module__.split(".")[0] in {"botocore", "aiobotocore", "aiohttp"}
        if client or isinstance(error, OSError):
            raise StorageError(
                f"{url}: reading failed: {error}; check the network, the credentials and the "
                "endpoint, and run again"
            ) from error
        raise


def read_files(config: ImportConfig) -> list[FileRef]:
    """The files of a source, sorted by path.

    Raises ConfigError where a path leads to no file or two files would have one name, and
    StorageError where the storage refuses or fails.
    """
    found: dict[str, FileRef] = {}
    for pattern in config.paths:
        try:
            with explained(pattern):
                refs = _list(pattern, code=config.format == "code")
        except PermissionError as error:
            raise StorageError(
                f"{pattern}: listing was refused ({error}); check the credentials and its mode"
            ) from error
        found |= {ref.url: ref for ref in refs if ref.url not in found}
    by_path: dict[str, FileRef] = {}
    for ref in found.values():
        other = by_path.setdefault(ref.path, ref)
        if other is not ref:
            raise ConfigError(
                f"{other.url} and {ref.url} would both be named {ref.path!r} in their source; "
                "give one path or glob whose fixed part holds both, or make them two sources"
            )
    return [by_path[path] for path in sorted(by_path)]


def _list(pattern: str, code: bool) -> list[FileRef]:
    """The files that one entry of `paths` stands for; code has files such as `__init__.py`."""
    from fsspec.core import has_magic, url_to_fs

    fs, path = url_to_fs(pattern, **OPTIONS)
    try:
        info = fs.info(path)
    except FileNotFoundError:
        info = None
    if info and info["type"] == "file":
        return [_ref(fs, path, fs._parent(path), info)]
    if info:
        root, infos = path, fs.find(path, detail=True)
    elif has_magic(path):
        parts = path.split("/")
        magic = next(index for index, part in enumerate(parts) if has_magic(part))
        root, infos = "/".join(parts[:magic]), fs.glob(path, detail=True)
    else:
        raise ConfigError(f"{pattern} does not exist; {_nearest(fs, path)}")
    infos = {name: _followed(fs, name, at) for name, at in infos.items()}
    files = {name: at for name, at in infos.items() if at["type"] == "file"}
    refs = [_ref(fs, name, root, at) for name, at in files.items()]
    refs = [ref for ref in refs if not _hidden(ref.path, (".",) if code else (".", "_"))]
    if not refs:
        raise ConfigError(f"{pattern} holds no file to read; {_nearest(fs, path)}")
    return refs


def _followed(fs: Any, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """What a link leads to, of which a listing says nothing; the link where it leads nowhere."""
    try:
        return fs.info(name) if info.get("islink") else info
    except FileNotFoundError:
        return info


def _hidden(path: str, marks: tuple[str, ...]) -> bool:
    return any(part.startswith(marks) for part in path.split("/"))


def _nearest(fs: Any, path: str) -> str:
    """What there is where `path` was looked for: the most similar name, or the first few."""
    missing, folder = posixpath.basename(path.rstrip("/")), fs._parent(path.rstrip("/"))
    while not fs.isdir(folder):
        missing, parent = posixpath.basename(folder), fs._parent(folder)
        if parent == folder:
            return "nor does anything above it"
        folder = parent
    names = sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(folder, detail=False))
    close = difflib.get_close_matches(missing, names, n=1)
    if close:
        return f"did you mean {posixpath.join(folder, close[0])}?"
    return f"{folder or '/'} holds {', '.join(names[:5]) or 'nothing'}"


def _ref(fs: Any, name: str, root: str, info: dict[str, Any]) -> FileRef:
    moments = ("mtime", "LastModified", "last_modified", "updated", "created")
    moment = next((info[key] for key in moments if info.get(key) is not None), None)
    mark = info.get("ETag") or info.get("etag")
    if isinstance(moment, int | float):
        mark = mark or str(round(moment * 1e9))
        moment = datetime.fromtimestamp(moment, UTC)
    modified = iso_utc(moment) if isinstance(moment, datetime) else None
    size = int(info.get("size") or 0)
    return FileRef(
        url=fs.unstrip_protocol(name),
        path=posixpath.relpath(name, root or "/"),
        size=size,
        token=f"{size}:{mark or moment}",
        modified=modified,
    )
