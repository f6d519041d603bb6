"""What a user sees when the input, the config or the store is bad: through the command line.

How each reader, the crawler and the store's files meet bad input is tested where they are; here it
is the whole way, to the exit code, the words on the terminal and what the corpus holds afterwards.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import ascii_lowercase

import pytest

from tasks.store.store import Store
from tests.flows.plainly import Loam, command_line
from tests.tasks.crawling.site import Answer, Site, page, serving

SETTINGS = """
name = "bad"
[store]
root = "store"
workers = 1
[select]
gopher_quality = false
gopher_repetition = false
c4 = false
fineweb = false
"""
QUICK = "retries = 1\nbackoff_s = 0\ndelay_s = 0\ngive_up_after = 3\nmax_age_s = 0\n"
N_WORDS = 60


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOAM_STORE", "store")


@pytest.fixture
def loam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Loam:
    return command_line(monkeypatch, capsys)


def text(n: int) -> str:
    """The `n`th text, of words that no other text has and that compression finds little in."""
    letters = random.Random(n)
    return " ".join("".join(letters.choices(ascii_lowercase, k=7)) for _ in range(N_WORDS))


def rows(*numbers: int) -> bytes:
    return b"".join(json.dumps({"id": f"d{n}", "text": text(n)}).encode() + b"\n" for n in numbers)


def source(name: str, path: str, more: str = "") -> str:
    return f'[[sources]]\nkind = "import"\nname = "{name}"\npaths = ["{path}"]\n{more}\n'


def crawl(site: Site, more: str = "") -> str:
    return (
        f'[[sources]]\nkind = "crawl"\nname = "site"\nseeds = ["http://site.test/"]\n'
        f'mirror = {{ "http://site.test/" = "{site.url}/" }}\n'
        f'allow_private = ["{site.host}"]\n{QUICK}{more}\n'
    )


def write_config(*sources: str, settings: str = SETTINGS) -> None:
    Path("loam.toml").write_text(settings + "".join(sources))


def refused(answer: tuple[int, str, str], *said: str) -> None:
    """Exit code 2, and one error that says all of this without a traceback."""
    code, _, err = answer
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1)
    assert "Traceback" not in err
    for words in said:
        assert words in errors[0]


def set_aside(loam: Loam) -> dict[str, list[list[str | None]]]:
    """Examples of what could not be read, (locator, detail), by reason."""
    code, out, _ = loam("show", "bad", "--quarantined", "--n", "20", "--json")
    assert code == 0
    return {group["reason"]: group["examples"] for group in json.loads(out)}


def live(loam: Loam) -> int:
    code, out, _ = loam("show", "bad", "--json")
    assert code == 0
    return int(json.loads(out)["funnel"][-1]["rows_out"])


def nothing_half_written(loam: Loam) -> None:
    """Whatever lies in the store is whole, though not all of it is named by something yet."""
    objects = [path for path in Path("store").rglob("*") if path.is_file()]
    assert not [path for path in objects if path.stat().st_size == 0 and path.suffix != ".lock"]
    if Store.at("store").list_refs():
        code, out, _ = loam("store", "verify")
        assert code == 0, out


# files


def test_bad_records_and_files_are_set_aside_by_name_and_the_rest_goes_on(loam: Loam) -> None:
    docs = Path("docs")
    docs.mkdir()
    bad = [b"not json", b'{"id": "x"}', b'["a list"]', b'{"text": "\xff"}']
    (docs / "mixed.jsonl").write_bytes(rows(1, 2) + b"\n".join(bad) + b"\n" + rows(3, 2))
    whole = gzip.compress(rows(*range(10, 100)), mtime=0)
    (docs / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (docs / "damaged.jsonl.gz").write_bytes(whole[:10] + b"\xff" * 100)
    (docs / "cut.parquet").write_bytes(b"PAR1 and no footer")
    write_config(source("docs", "docs"))
    code, out, err = loam("run")
    assert (code, "Traceback" in out + err) == (0, False)
    found = set_aside(loam)
    places = {reason: {place for place, _ in examples} for reason, examples in found.items()}
    assert places["not_json"] == {"mixed.jsonl:3"}
    assert places["no_text"] == {"mixed.jsonl:4"}
    assert places["wrong_type"] == {"mixed.jsonl:5"}
    assert places["not_utf8"] == {"mixed.jsonl:6"}
    assert places["truncated"] == {"cut.jsonl.gz", "cut.parquet"}
    assert places["unreadable"] == {"damaged.jsonl.gz"}
    assert len(found["duplicate_id"]) == 1
    assert live(loam) > 3
    code, out, _ = loam("show", "bad", "--quarantined")
    assert code == 0
    assert "mixed.jsonl:3" in out
    assert "cut.jsonl.gz" in out


@pytest.mark.parametrize(("name", "body"), [("empty.jsonl", b""), ("all-bad.jsonl", b"x\ny\n")])
def test_a_source_without_one_readable_document_is_refused_by_name(
    loam: Loam, name: str, body: bytes
) -> None:
    Path(name).write_bytes(body)
    write_config(source("docs", name))
    refused(loam("run"), "docs", "hold no document that can be read", f"({len(body) // 2} records")


def test_a_path_that_is_not_there_is_refused_before_anything_runs(loam: Loam) -> None:
    Path("documents.jsonl").write_bytes(rows(1, 2))
    write_config(source("docs", "documants.jsonl"))
    refused(loam("run"), "documants.jsonl does not exist", "did you mean", "documents.jsonl")
    assert not Path("store").exists()


def test_a_folder_without_a_file_is_refused_by_name(loam: Loam) -> None:
    Path("docs").mkdir()
    write_config(source("docs", "docs"))
    refused(loam("run"), "docs holds no file to read")


PAGE = (
    b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://site.test/\r\n"
    b"WARC-Date: 2026-01-31T12:00:00Z\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
    b"Content-Type: application/http;msgtype=response\r\nContent-Length: 46\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nhi\r\n\r\n"
)


@pytest.mark.parametrize(("first", "then"), [("a.jsonl", "b.warc"), ("b.jsonl", "a.warc")])
def test_documents_and_responses_in_one_source_are_refused_in_any_order(
    loam: Loam, first: str, then: str
) -> None:
    Path("data").mkdir()
    Path("data", first).write_bytes(rows(1, 2))
    Path("data", then).write_bytes(PAGE)
    write_config(source("mixed", "data"))
    refused(loam("run"), "mixed: ", "make them two sources")


def test_a_source_that_becomes_one_of_another_kind_wants_another_name(loam: Loam) -> None:
    Path("site.jsonl").write_bytes(rows(*range(20)))
    write_config(source("site", "site.jsonl"))
    assert loam("run")[0] == 0
    with serving({"/": page("hello")}) as site:
        write_config(crawl(site))
        refused(loam("run"), "site: ", "give the source another name")


def test_the_funnel_is_shown_after_a_run_that_looked_at_every_source_again(loam: Loam) -> None:
    Path("docs.jsonl").write_bytes(rows(*range(20)))
    write_config(source("docs", "docs.jsonl"))
    assert loam("run")[0] == 0
    code, out, _ = loam("run", "--refresh")
    assert code == 0
    assert any(line.split()[:4] == ["import", "docs", "20", "20"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("before", "sources", "said"),
    [
        ("nmae = 1\n", source("docs", "d.jsonl"), ("loam.toml", "'nmae'", "did you mean 'name'")),
        ("", source("docs", "d.jsonl", 'txt_field = "x"'), ("txt_field", "'text_field'")),
        ("", source("a", "d.jsonl") + source("a", "d.jsonl"), ("two sources are called 'a'",)),
    ],
)
def test_a_wrong_key_is_refused_with_the_nearest_right_one(
    loam: Loam, before: str, sources: str, said: tuple[str, ...]
) -> None:
    Path("d.jsonl").write_bytes(rows(1, 2))
    write_config(sources, settings=before + SETTINGS)
    refused(loam("run"), *said)


def test_a_source_taken_out_of_the_config_says_how_many_documents_leave(loam: Loam) -> None:
    Path("a.jsonl").write_bytes(rows(1, 2, 3))
    Path("b.jsonl").write_bytes(rows(11, 12))
    write_config(source("a", "a.jsonl"), source("b", "b.jsonl"))
    code, out, _ = loam("run")
    assert (code, "no longer" in out) == (0, False)
    before = live(loam)
    write_config(source("a", "a.jsonl"))
    code, out, _ = loam("run")
    assert code == 0
    assert "b is no longer among the sources: its 2 documents leave" in out
    assert (before, live(loam)) == (5, 3)


# sites


def test_a_site_full_of_traps_is_crawled_with_every_page_accounted_for(loam: Loam) -> None:
    megabyte = bytes(1 << 20)
    routes = {
        "/robots.txt": page("/", text="Welcome! There is no such page here."),
        "/": page("/broken-text", "/huge", "/huge-unsized", "/loop", "/good", "/calendar?day=0"),
        "/good": page(text=text(1)),
        "/broken-text": Answer(b"<p>" + text(2).encode() + b" caf\xe9 \xff\xfe end</p>"),
        "/huge": lambda _: Answer(itertools.repeat(megabyte, 500), headers={
            "Content-Length": str(500 << 20)}),
        "/huge-unsized": lambda _: Answer(itertools.repeat(megabyte, 500)),
        "/loop": Answer(b"", 302, {"Location": "/loop-on"}),
        "/loop-on": Answer(b"", 302, {"Location": "/loop"}),
    }  # fmt: skip

    def calendar(path: str) -> Answer:
        if not path.startswith("/calendar?day="):
            return Answer(b"no such page", 404)
        day = int(path.partition("=")[2])
        return page(f"/calendar?day={day + 1}", text=text(1000 + day))

    with serving(routes, calendar) as site:
        write_config(crawl(site, "max_query_urls_per_path = 5"))
        code, out, err = loam("run")
        sent = site.bytes_sent
    assert (code, "Traceback" in out + err) == (0, False)
    assert sent < 100 << 20
    found = set_aside(loam)
    places = {reason: {place for place, _ in examples} for reason, examples in found.items()}
    assert places["too_large"] == {"http://site.test/huge", "http://site.test/huge-unsized"}
    assert places["redirect_loop"] == {"http://site.test/loop", "http://site.test/loop-on"}
    # The front page, the two with a text, and no more of the calendar than was allowed.
    assert live(loam) == 3 + 5


def test_a_site_that_is_down_all_night_keeps_what_was_known_of_it(loam: Loam) -> None:
    routes: dict[str, Answer] = {"/": page("/a", "/b", "/c", "/d", text=text(0))}
    routes |= {f"/{name}": page(text=text(n)) for n, name in enumerate("abcd", 1)}
    with serving(routes) as site:
        write_config(crawl(site))
        assert loam("run")[0] == 0
        before = Store.at("store").find_ref("corpus", "bad")
        site.routes = dict.fromkeys(routes, Answer(b"", 503))
        began = time.monotonic()
        code, out, _ = loam("run")
        assert (code, time.monotonic() - began < 30) == (0, True)
    assert "crawl site: not complete" in out
    after = Store.at("store").find_ref("corpus", "bad")
    assert before is not None
    assert after is not None
    store = Store.at("store")
    digests = {store.manifest(ref.manifest).data_digest for ref in (before, after)}
    assert (len(digests), live(loam)) == (1, 5)


def test_a_site_that_is_down_the_first_time_is_an_error_and_can_be_had_the_next(
    loam: Loam,
) -> None:
    routes: dict[str, Answer] = {"/": page("/a", text=text(0)), "/a": page(text=text(1))}
    with serving(dict.fromkeys([*routes, "/robots.txt"], Answer(b"", 503))) as site:
        write_config(crawl(site))
        refused(loam("run"), "site: the crawl found no page", "1 error:robots", "check the seeds")
        site.routes = dict(routes)
        assert loam("run")[0] == 0
    assert live(loam) == 2


# stores


def test_a_store_where_nothing_may_be_written_is_refused_by_its_place(loam: Loam) -> None:
    Path("docs.jsonl").write_bytes(rows(1, 2))
    write_config(source("docs", "docs.jsonl"))
    refused(loam("run", "--store", "/proc/loam"), "/proc/loam", "create the bucket or folder")


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_is_told_and_the_run_goes_on_from_there(loam: Loam) -> None:
    Path("docs.jsonl").write_bytes(rows(*range(100)))
    write_config(source("docs", "docs.jsonl"))
    with largest_file(20_000):
        refused(loam("run"), "there is no room", "TMPDIR", "run again")
    nothing_half_written(loam)
    assert loam("run")[0] == 0
    nothing_half_written(loam)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here: it takes root's rights")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", ["16k", "100k", "180k"])
def test_a_disk_that_fills_up_is_told_and_the_run_goes_on_once_there_is_room(
    loam: Loam, size: str
) -> None:
    Path("docs.jsonl").write_bytes(rows(*range(100)))
    write_config(source("docs", "docs.jsonl"))
    with small_disk(Path("store"), size):
        refused(loam("run"), "/store/", "there is no room for it", "run again")
        nothing_half_written(loam)
        subprocess.run(["mount", "-o", "remount,size=64m", "store"], check=True)
        assert loam("run")[0] == 0
        nothing_half_written(loam)


def test_a_wrong_s3_key_is_told_by_place_and_variable(
    loam: Loam, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("docs.jsonl").write_bytes(rows(1, 2))
    write_config(source("docs", "docs.jsonl"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused(loam("run", "--store", s3_root), s3_root, "AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    refused(loam("run", "--store", s3_root), s3_root, "AWS_ACCESS_KEY_ID")
