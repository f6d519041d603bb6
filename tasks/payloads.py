"""The stored responses of crawled pages, read back out of their WARC objects."""

from __future__ import annotations

from typing import IO, Self

import pyarrow as pa

from llm import files
from llm.errors import DataError
from tasks.store.records import ObjectRef
from tasks.store.store import Store

_OPEN_AT_ONCE = 16


class PayloadReader:
    """Reads payloads by WARC object and offset; keeps the last few objects open."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._open: dict[str, IO[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self, warc: str, offset: int) -> bytes | None:
        """The decoded body of the response at `offset` of the WARC object named `warc`; None where
        it was erased.

        Raises DataError when it is missing or not a response.
        """
        from tasks.crawling.warc import ErasedPayload, read_payload

        try:
            return read_payload(self._file(warc), offset)[2]
        except ErasedPayload:
            return None

    def _file(self, warc: str) -> IO[bytes]:
        if warc not in self._open:
            if len(self._open) >= _OPEN_AT_ONCE:
                self._open.pop(next(iter(self._open))).close()
            self._open[warc] = self._find(warc)
        return self._open[warc]

    def _find(self, warc: str) -> IO[bytes]:
        """The object, or what stands in its place since pages were erased from it."""
        for ext in ("warc.gz", "warc"):
            try:
                return files.open_for_reading(
                    self.store.object_url(ObjectRef("warc", warc, ext, 0, 0))
                )
            except FileNotFoundError:
                continue
        erased = self.store.find_erased(warc)
        if erased is not None and erased.successor is not None:
            return self._find(erased.successor.sha256)
        raise DataError(
            f"WARC object {warc} is missing from {self.store.root}; `loam store verify` lists "
            "what else is"
        )


def read_payloads(store: Store, pages: pa.Table) -> list[bytes | None]:
    """The payload of each row of PAGES, in its order, None where it was erased. Objects are read
    front to back.

    Raises DataError when one is missing, or is not the payload that the row was made of.
    """
    columns = (pages.column(name).to_pylist() for name in ("warc", "warc_offset"))
    places = list(zip(*columns, strict=True))
    expected = pages.column("payload_sha256").to_pylist()
    payloads: dict[int, bytes | None] = {}
    with PayloadReader(store) as reader:
        for row in sorted(range(len(places)), key=places.__getitem__):
            payload = payloads[row] = reader.read(*places[row])
            if payload is not None and files.sha256(payload) != expected[row]:
                warc, offset = places[row]
                raise DataError(
                    f"WARC object {warc}, offset {offset}: the payload is not the one whose sha256 "
                    f"is {expected[row]}; `loam store verify` tells whether the object is damaged"
                )
    return [payloads[row] for row in range(len(places))]
