"""The journal of a crawl in progress: its batches as receipts, so that a killed crawl goes on.

A session is one look at a source over one earlier snapshot. Its ref says that it is open; the
batches fetched in it are found again by key until it is closed, which is when the snapshot that
they became is published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm import files
from tasks.crawling.result import Batch, Outcome
from tasks.erase import erased_list, take_out_of_file, without_erased
from tasks.store.fingerprint import fingerprint
from tasks.store.records import Manifest, ObjectRef, Receipt, receipt_from, to_json
from tasks.store.rows import digest_hex
from tasks.store.run import Run
from tasks.store.schema import PAGES
from tasks.store.store import RefMoved, now


@dataclass(frozen=True)
class Session:
    """One look at a source: `key` scopes its batches."""

    run: Run
    source: str
    key: str

    def close(self) -> None:
        """Ends the session, so that the next look fetches anew."""
        ref = self.run.store.find_ref("crawl", f"{self.run.name}/{self.source}")
        if ref is not None and ref.value["key"] == self.key:
            with suppress(RefMoved):
                value = {**ref.value, "open": False}
                self.run.store.move_ref("crawl", f"{self.run.name}/{self.source}", value, ref)


def open_session(
    run: Run, source: str, config: Mapping[str, Any], previous: Manifest | None
) -> Session:
    """The session that a stopped run left open over the same snapshot and config, or a new one."""
    name = f"{run.name}/{source}"
    scope = fingerprint(
        {"config": dict(config), "base": previous.fingerprint if previous else None}
    )
    ref = run.store.find_ref("crawl", name)
    if ref is None or not ref.value["open"] or ref.value["scope"] != scope:
        key = fingerprint({"scope": scope, "started_at": now(), "run": run.run_id})
        # Where another run opens one at the same moment, both use that one.
        with suppress(RefMoved):
            run.store.move_ref("crawl", name, {"key": key, "scope": scope, "open": True}, ref)
        ref = run.store.find_ref("crawl", name)
    key = str(ref.value["key"]) if ref is not None else scope
    return Session(run, source, key)


class StoreJournal:
    """A crawl's journal on the store. `warcs` are the WARC objects of its batches so far."""

    def __init__(self, run: Run, session: Session, source: str) -> None:
        self.run, self.session, self.source = run, session, source
        self.warcs: list[ObjectRef] = []
        self.resumed = 0
        self._erased = erased_list(run.store)

    def _url(self, key: str) -> tuple[str, str]:
        scoped = fingerprint({"session": self.session.key, "batch": key, "source": self.source})
        return scoped, self.run.store.receipt_url("crawl", scoped)

    def load(self, key: str) -> Batch | None:
        _, url = self._url(key)
        (body,) = files.read_many([url])
        if body is None:
            return None
        self.resumed += 1
        return self._batch(receipt_from(json.loads(body)))

    def save(self, key: str, batch: Batch) -> Batch:
        """Uploads the batch; where another run was first, its batch is returned."""
        store = self.run.store
        scoped, url = self._url(key)
        names: dict[str, ObjectRef] = {}
        for path in dict.fromkeys(batch.pages.column("warc").to_pylist()):
            held = batch.pages.filter(pc.equal(batch.pages.column("warc"), path))
            take_out_of_file(Path(path), held, self._erased)
            names[path] = store.put_local_file(Path(path), "warc", "warc.gz")
            Path(path).unlink()
        warc = [names[path].sha256 for path in batch.pages.column("warc").to_pylist()]
        at = batch.pages.schema.get_field_index("warc")
        pages = batch.pages.set_column(at, "warc", pa.array(warc, pa.string()))
        pages_ref = store.put_table(without_erased(pages, PAGES, self._erased), PAGES)
        log = {"seen": [asdict(outcome) for outcome in batch.seen], "links": list(batch.links)}
        log_ref = store.put_bytes(json.dumps(log, sort_keys=True).encode(), "crawl-log", "json")
        outputs = (*names.values(), *((pages_ref,) if pages_ref else ()), log_ref)
        receipt = Receipt(
            key=scoped,
            outputs=tuple(outputs),
            rows_in=pages.num_rows,
            rows_out=pages.num_rows,
            drops={},
            data_digest=pages_ref.data_digest if pages_ref else digest_hex(0),
            run_id=self.run.run_id,
        )
        if not files.create(url, to_json(receipt)):
            receipt = receipt_from(json.loads(files.read_bytes(url)))
        return self._batch(receipt)

    def _batch(self, receipt: Receipt) -> Batch:
        store = self.run.store
        log_ref = receipt.output("crawl-log")
        log = json.loads(store.read_bytes(log_ref)) if log_ref else {"seen": [], "links": []}
        self.warcs += [ref for ref in receipt.outputs if ref.kind == "warc"]
        return Batch(
            pages=store.read_table(receipt.output(PAGES.kind), PAGES),
            seen=tuple(Outcome(**outcome) for outcome in log["seen"]),
            links=tuple(log["links"]),
        )
