"""The website of the quickstart: the documentation of the Python that runs Loam.

pydoc's own renderer writes it to static HTML in a child process (`tasks/pydoc_render.py`), so
that every machine has a real site of some 500 linked pages to crawl. Two renders by one Python
are equal byte for byte; another version of Python gives other pages.
"""

from __future__ import annotations

import hashlib
import html
import http.server
import json
import mimetypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from llm.errors import ConfigError, DataError

# Modules that every Python from 3.11 on has, that do nothing when imported, and that make about
# 6 MB of text. One that a machine lacks is left out and counted.
MODULES = tuple(
    """
    __future__ _abc _ast _asyncio _bisect _blake2 _bz2 _codecs _collections _collections_abc
    _contextvars _csv _ctypes _curses _curses_panel _datetime _decimal _elementtree _functools
    _hashlib _heapq _imp _io _json _locale _lsprof _lzma _md5 _multiprocessing _opcode _operator
    _osx_support _pickle _posixshmem _posixsubprocess _pydecimal _pyio _queue _random _sha3
    _signal _sitebuiltins _socket _sqlite3 _sre _ssl _stat _statistics _string _struct _symtable
    _thread _threading_local _tokenize _tracemalloc _uuid _warnings _weakref abc argparse array
    ast asyncio asyncio.base_events asyncio.base_futures asyncio.base_subprocess
    asyncio.base_tasks asyncio.constants asyncio.coroutines asyncio.events asyncio.exceptions
    asyncio.format_helpers asyncio.futures asyncio.locks asyncio.log asyncio.mixins
    asyncio.proactor_events asyncio.protocols asyncio.queues asyncio.runners
    asyncio.selector_events asyncio.sslproto asyncio.staggered asyncio.streams
    asyncio.subprocess asyncio.taskgroups asyncio.tasks asyncio.threads asyncio.timeouts
    asyncio.transports asyncio.trsock asyncio.unix_events atexit base64 bdb binascii bisect
    builtins bz2 cProfile calendar cmath cmd code codecs codeop collections collections.abc
    colorsys compileall concurrent concurrent.futures concurrent.futures._base
    concurrent.futures.process concurrent.futures.thread configparser contextlib contextvars
    copy copyreg csv ctypes ctypes._endian ctypes.util ctypes.wintypes curses curses.ascii
    curses.has_key curses.panel curses.textpad dataclasses datetime dbm dbm.dumb decimal difflib
    dis doctest email email._encoded_words email._header_value_parser email._parseaddr
    email._policybase email.base64mime email.charset email.contentmanager email.encoders
    email.errors email.feedparser email.generator email.header email.headerregistry
    email.iterators email.message email.mime email.mime.application email.mime.audio
    email.mime.base email.mime.image email.mime.message email.mime.multipart
    email.mime.nonmultipart email.mime.text email.parser email.policy email.quoprimime
    email.utils encodings encodings.aliases encodings.cp1250 encodings.cp1251 encodings.cp1252
    encodings.cp437 encodings.cp850 encodings.idna encodings.iso8859_1 encodings.iso8859_15
    encodings.iso8859_2 encodings.koi8_r encodings.latin_1 encodings.punycode encodings.utf_16
    encodings.utf_8 encodings.utf_8_sig enum errno faulthandler fcntl filecmp fileinput fnmatch
    fractions ftplib functools gc genericpath getopt getpass gettext glob graphlib grp gzip
    hashlib heapq hmac html html.entities html.parser http http.client http.cookiejar
    http.cookies http.server imaplib importlib importlib._abc importlib._bootstrap
    importlib._bootstrap_external importlib.abc importlib.machinery importlib.metadata
    importlib.resources importlib.resources.abc importlib.resources.readers
    importlib.resources.simple importlib.util inspect io ipaddress itertools json json.decoder
    json.encoder json.scanner json.tool keyword linecache locale logging logging.config
    logging.handlers lzma mailbox marshal math mimetypes mmap modulefinder multiprocessing
    multiprocessing.connection multiprocessing.context multiprocessing.dummy
    multiprocessing.dummy.connection multiprocessing.forkserver multiprocessing.heap
    multiprocessing.managers multiprocessing.pool multiprocessing.popen_fork
    multiprocessing.popen_forkserver multiprocessing.popen_spawn_posix multiprocessing.process
    multiprocessing.queues multiprocessing.reduction multiprocessing.resource_sharer
    multiprocessing.resource_tracker multiprocessing.shared_memory multiprocessing.sharedctypes
    multiprocessing.spawn multiprocessing.synchronize multiprocessing.util netrc ntpath
    nturl2path numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil
    platform plistlib poplib posix posixpath pprint profile pstats pty pwd py_compile pyclbr
    pyexpat queue quopri random re re._casefix re._compiler re._constants re._parser readline
    reprlib resource rlcompleter runpy sched secrets select selectors shelve shlex shutil signal
    site smtplib socket socketserver sqlite3 sqlite3.dbapi2 sqlite3.dump sre_compile
    sre_constants sre_parse ssl stat statistics string stringprep struct subprocess symtable sys
    sysconfig syslog tabnanny tarfile tempfile termios textwrap threading time timeit token
    tokenize tomllib trace traceback tracemalloc tty types typing unicodedata unittest
    unittest._log unittest.async_case unittest.case unittest.loader unittest.main unittest.mock
    unittest.result unittest.runner unittest.signals unittest.suite unittest.util urllib
    urllib.error urllib.parse urllib.request urllib.response urllib.robotparser uuid venv
    warnings wave weakref webbrowser wsgiref wsgiref.handlers wsgiref.headers
    wsgiref.simple_server wsgiref.types wsgiref.util wsgiref.validate xml xml.dom
    xml.dom.NodeFilter xml.dom.domreg xml.dom.expatbuilder xml.dom.minicompat xml.dom.minidom
    xml.dom.pulldom xml.dom.xmlbuilder xml.etree xml.etree.ElementInclude xml.etree.ElementPath
    xml.etree.ElementTree xml.etree.cElementTree xml.parsers xml.parsers.expat xml.sax
    xml.sax._exceptions xml.sax.expatreader xml.sax.handler xml.sax.saxutils xml.sax.xmlreader
    xmlrpc xmlrpc.client xmlrpc.server zipapp zipfile zipimport zlib zoneinfo zoneinfo._common
    zoneinfo._tzpath zoneinfo._zoneinfo
    """.split()  # noqa: SIM905
)
# Pages of the language reference that come with pydoc, as `help("assignment")` shows them.
TOPICS = tuple(
    """
    assert assignment async atom-identifiers atom-literals attribute-access attribute-references
    augassign await binary bitwise bltin-code-objects bltin-ellipsis-object bltin-null-object
    bltin-type-objects booleans break callable-types calls class comparisons compound
    context-managers continue conversions customization debugger del dict dynamic-features else
    exceptions execmodel exprlists floating for formatstrings function global id-classes
    identifiers if imaginary import in integers lambda lists naming nonlocal numbers
    numeric-types objects operator-summary pass power raise return sequence-types shifting
    slicings specialattrs specialnames string-methods strings subscriptions truth try types
    typesfunctions typesmapping typesmethods typesmodules typesseq typesseq-mutable unary while
    with yield
    """.split()  # noqa: SIM905
)
# Real pages in the part of the site that its robots.txt forbids.
PRIVATE = ("_compat_pickle", "_markupbase", "_py_abc", "_strptime", "_weakrefset")

INTRODUCTION = """\
<p>These pages document the modules of the standard library of the Python that runs Loam, and the
grammar of the language. They were rendered on this machine, by the documentation tool that comes
with Python, to give the quickstart a real website to read.</p>
<p>Every page below is ordinary HTML with links to its neighbors. A small part of the site is
private: robots.txt asks crawlers to stay out of it, although this page links there, so that
whoever reads the site can check that the wish was respected.</p>
"""


@dataclass(frozen=True)
class SiteSummary:
    """What was rendered. `left_out` says per module or topic why it has no page."""

    directory: Path
    host: str
    python: str
    n_pages: int
    n_private: int
    html_bytes: int
    text_bytes: int
    left_out: dict[str, str]


def render_site(
    directory: Path,
    host: str = "http://python.loam.test/",
    modules: Sequence[str] | None = None,
    timeout_s: float = 300,
) -> SiteSummary:
    """Renders the site into `directory`, which appears whole or not at all.

    `host` is the address the site will be known by; only its sitemap and robots.txt mention it.
    `modules` (default: `MODULES`) get a page each.

    Raises ConfigError where `directory` holds files already, DataError where the renderer fails
    or takes longer than `timeout_s`.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(
            f"{directory} holds files already; a site is rendered into a new or an empty folder"
        )
    host = host.rstrip("/") + "/"
    modules = MODULES if modules is None else modules
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".site-") as scratch:
        pages = Path(scratch, "pages")
        pages.mkdir()
        report = _render_pages(Path(scratch), pages, [*modules], timeout_s)
        _write(pages / "index.html", _index(report["pages"]))
        _write(pages / "sitemap.xml", _sitemap(host, report["pages"]))
        _write(pages / "robots.txt", _robots(host))
        html_bytes = sum(path.stat().st_size for path in pages.rglob("*.html"))
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(pages, directory)
    return SiteSummary(
        directory=directory,
        host=host,
        python=platform.python_version(),
        n_pages=len(report["pages"]) + 1,
        n_private=sum(path.startswith("private/") for path in report["pages"]),
        html_bytes=html_bytes,
        text_bytes=report["text_bytes"],
        left_out=report["left_out"],
    )


def _render_pages(scratch: Path, pages: Path, modules: list[str], timeout_s: float) -> dict:
    """Runs the child process in an empty folder with an empty environment; returns its report."""
    empty = scratch / "empty"
    empty.mkdir()
    script = Path(__file__).with_name("pydoc_render.py")
    request = {"output": str(pages), "modules": modules, "private": PRIVATE, "topics": TOPICS}
    # Isolated as by -I, which would also ignore PYTHONHASHSEED: the environment is empty instead.
    # Without `site` (-S) no installed package can take a module's place.
    # Its real name: the documentation of `platform` spells out what the interpreter is called.
    interpreter = os.path.realpath(sys.executable)
    command = [interpreter, "-P", "-s", "-S", "-B", str(script), str(scratch / "report.json")]
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LC_ALL": "C", "TZ": "UTC"}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            cwd=empty,
            env=environment | {"HOME": str(empty)},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"rendering the documentation took longer than {timeout_s:g} s and was stopped; "
            "give it more time or fewer modules"
        ) from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise DataError(f"rendering failed with status {done.returncode}: {last[0]}")
    return json.loads((scratch / "report.json").read_text(encoding="utf-8"))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _index(pages: dict[str, str]) -> str:
    """The page that links to all others, each with its summary."""
    items = "\n".join(
        f'<li><a href="{quote(path)}">{html.escape(path.removesuffix(".html"))}</a> '
        f"{html.escape(summary)}</li>"
        for path, summary in sorted(pages.items())
    )
    title = "The documentation of Python"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n</head>\n<body>\n<h1>{title}</h1>\n{INTRODUCTION}"
        f"<ul>\n{items}\n</ul>\n</body>\n</html>\n"
    )


def _sitemap(host: str, pages: dict[str, str]) -> str:
    """The public pages as https://www.sitemaps.org/protocol.html asks, by absolute URL."""
    public = ["", *(path for path in sorted(pages) if not path.startswith("private/"))]
    urls = "\n".join(f"<url><loc>{html.escape(host + quote(path))}</loc></url>" for path in public)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}\n</urlset>\n'
    )


def _robots(host: str) -> str:
    return f"User-agent: *\nDisallow: /private/\n\nSitemap: {host}sitemap.xml\n"


@contextmanager
def serve(directory: Path, port: int = 0) -> Iterator[str]:
    """Serves the files of `directory` on loopback; yields the base URL, with a slash at its end.

    `port` 0 takes any that is free. A file's ETag is of its content, so that a copy of the site
    made later answers 304 to whoever has read this one. There are no directory listings.
    """
    root = directory.resolve()
    if not root.is_dir():
        raise ConfigError(f"{directory} is no folder that could be served")
    handler = type("SiteHandler", (_StaticHandler,), {"root": root})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _StaticHandler(http.server.BaseHTTPRequestHandler):
    """GET and HEAD for the files below `root`."""

    protocol_version = "HTTP/1.1"
    server_version = "Loam"
    sys_version = ""
    timeout = 60
    root: Path

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path, errors="surrogateescape")
        found = _file_below(self.root, path)
        if found is None:
            self._reply(404, b"not found\n", {"Content-Type": "text/plain"})
        elif found.is_dir():
            place = quote(path.strip("/"), errors="surrogateescape")
            self._reply(301, b"", {"Location": f"/{place}/"})
        else:
            body = found.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            if _matches(self.headers.get("If-None-Match", ""), etag):
                self._reply(304, b"", {"ETag": etag})
            else:
                self._reply(200, body, {"Content-Type": content_type(found), "ETag": etag})

    do_HEAD = do_GET

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing: whoever crawls the site keeps the books."""


def _file_below(root: Path, path: str) -> Path | None:
    """The file a request means, or the folder it forgot the slash of; None when there is none."""
    name = path.lstrip("/") + ("index.html" if path.endswith("/") else "")
    try:
        found = (root / name).resolve()
        there = found.is_file() or (found / "index.html").is_file()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return None
    return found if there and found.is_relative_to(root) else None


def content_type(path: Path) -> str:
    """The type of a file by its last extension that has one: `index.html.ja.utf8` is HTML.

    From Python's own table, not the machine's, and without a charset: pages declare theirs.
    """
    known = mimetypes.MimeTypes().types_map[True] | {".gz": "application/gzip"}
    types = (known.get(suffix.lower()) for suffix in reversed(path.suffixes))
    return next((kind for kind in types if kind), "application/octet-stream")


def _matches(if_none_match: str, etag: str) -> bool:
    """Whether an If-None-Match header names `etag`, by the weak comparison of RFC 9110, 13.1.2."""
    named = re.findall(r'(?:W/)?("[^"]*")', if_none_match)
    return if_none_match.strip() == "*" or etag in named
