"""The child process of `tasks.pydoc_site`: renders documentation of this Python to HTML files.

Run as a script, alone in an empty folder; it imports nothing of Loam, and everything it
documents. The request comes as JSON on standard input:

    {"output": folder, "modules": [...], "private": [...], "topics": [...]}

and the answer, {"pages": {path: summary}, "text_bytes": n, "left_out": {name: reason}}, is written
to `report`, the path in its only argument, because a module may print while it is imported.
"""

from __future__ import annotations

import html
import importlib
import json
import os
import posixpath
import pydoc
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# Modules whose data describe the machine or the moment rather than the language.
MACHINE_DATA = {
    "locale", "os", "platform", "posix", "site", "sys", "sysconfig", "tempfile", "time",
}  # fmt: skip
# Their text is the same on every machine of the kind, and gives nobody away.
COMMON_PATHS = {
    "/usr", "/usr/bin", "/usr/local", "/usr/local/bin", "/bin", "/opt", "/root",
}  # fmt: skip
ADDRESS = re.compile(r"(?:(?: |&nbsp;)at(?: |&nbsp;)0x|, handle )[0-9a-fA-F]+")
LINK = re.compile(r'<a href="([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
ANCHOR = re.compile(r'<a name="([^"]*)"')
TAG = re.compile(r"<[^>]*>")
LICENSE = '<link rel="license" href="https://docs.python.org/3/license.html">\n</head>'


def local_paths() -> list[str]:
    """Paths that tell of this machine, longest first, as they are and as HTML writes them."""
    import sysconfig

    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.getcwd()}
    paths |= {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable)}
    paths |= {os.path.expanduser("~"), _home_of_account()}
    paths |= {os.path.realpath(path) for path in paths if path}
    named = {path.rstrip("/") for path in paths if path} - COMMON_PATHS - {""}
    escaped = {html.escape(path) for path in named}
    forms = named | escaped | {path.replace(" ", "&nbsp;") for path in escaped}
    return sorted(forms, key=_long_first)


def _home_of_account() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError):
        return ""


def _long_first(path: str) -> tuple[int, str]:
    return -len(path), path


def cleaner(paths: list[str]) -> Callable[[str], str]:
    """A function that strips memory addresses and `paths` from a text."""
    local = re.compile("(?:" + "|".join(map(re.escape, paths)) + r")(?:/|(?!\w))")
    return lambda text: local.sub("", ADDRESS.sub("", text))


class SiteDoc(pydoc.HTMLDoc):
    """pydoc's own renderer, without links to local files and without the machine's data."""

    module = ""

    def filelink(self, url: str, path: str) -> str:
        return ""

    def bigsection(self, title: str, *args: str) -> str:
        if title == "Data" and self.module in MACHINE_DATA:
            return ""
        return super().bigsection(title, *args)

    def module_page(self, module: ModuleType) -> str:
        self.module = module.__name__
        return self.page(module.__name__, self.docmodule(module))

    def topic_page(self, topic: str, text: str) -> str:
        """A page of the language reference that `help()` shows, as pydoc's server lays it out."""
        head = self.heading(f'<strong class="title">{topic}</strong>', '<a href=".">index</a>')
        body = f"<pre>{self.markup(text, self.escape)}</pre>"
        return self.page(topic, head + self.bigsection(topic, "topics", body))


def render(request: dict[str, list[str]]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """HTML by path, a one-line summary by path, and the reason by name of what was left out."""
    loaded, left_out = _load([*request["modules"], *request["private"]])
    private = set(request["private"])
    site, pages, summaries = SiteDoc(), {}, {}
    for name, module in loaded.items():
        path = f"private/{name}.html" if name in private else f"{name}.html"
        pages[path] = site.module_page(module)
        summaries[path] = pydoc.splitdoc(pydoc.getdoc(module))[0]
    texts = importlib.import_module("pydoc_data.topics").topics
    for topic in request["topics"]:
        if topic not in texts:
            left_out[f"topic {topic}"] = "this Python has no such topic"
            continue
        path = f"topic.{topic}.html"
        pages[path] = site.topic_page(topic, texts[topic].strip())
        summaries[path] = texts[topic].strip().split("\n", 1)[0]
    return pages, summaries, left_out


def _load(names: list[str]) -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Every module before the first is rendered: what a page links to depends on what is there."""
    loaded, left_out = {}, {}
    for name in names:
        try:
            loaded[name] = importlib.import_module(name)
        except BaseException as error:  # a module may even raise SystemExit
            left_out[name] = f"{type(error).__name__}: {error}"
    return loaded, left_out


def relink(path: str, pages: dict[str, str], anchors: dict[str, set[str]]) -> str:
    """The page at `path` with its links made relative; those that lead nowhere become text."""
    paths = {posixpath.basename(page): page for page in pages} | {".": "index.html"}

    def resolve(match: re.Match[str]) -> str:
        href, label = match.group(1), match.group(2)
        if re.match(r"(?:https?|ftp):", href):
            return match.group(0)
        page, _, fragment = href.partition("#")
        target = paths.get(page) if page else path
        if target is None or (target == path and fragment not in anchors[path]):
            return label
        to = "" if target == path else posixpath.relpath(target, posixpath.dirname(path) or ".")
        known = fragment and fragment in anchors.get(target, ())
        return f'<a href="{to}{"#" + fragment if known else ""}">{label}</a>'

    return LINK.sub(resolve, pages[path])


def main() -> None:
    warnings.simplefilter("ignore")
    request = json.load(sys.stdin)
    clean = cleaner(local_paths())
    # pydoc shortens a long repr in its middle, which could leave half a path or address behind.
    shorten = pydoc.cram
    pydoc.cram = lambda text, maxlen: shorten(clean(text), maxlen)
    pages, summaries, left_out = render(request)
    pages = {path: clean(page) for path, page in pages.items()}
    anchors = {path: set(ANCHOR.findall(page)) for path, page in pages.items()}
    text_bytes = 0
    for path in pages:
        target = Path(request["output"]) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        page = relink(path, pages, anchors).replace("</head>", LICENSE, 1)
        text_bytes += len(html.unescape(TAG.sub("", page)).encode())
        target.write_text(page, encoding="utf-8", newline="\n")
    report = {
        "pages": {path: clean(summary) for path, summary in summaries.items()},
        "text_bytes": text_bytes,
        "left_out": {name: clean(reason) for name, reason in left_out.items()},
    }
    Path(sys.argv[1]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
