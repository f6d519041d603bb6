"""One spelling for every web address, and where a mirrored one is really fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote, urljoin, urlsplit

MAX_URL_LENGTH = 2048
_DEFAULT_PORTS = {"http": 80, "https": 443}
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SUB_DELIMS = "!$&'()*+,;=:@"
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})|([^%]+)|(%)")
_SESSION_SEGMENT = re.compile(r";jsessionid=[^/;]*", re.IGNORECASE)
_DROPPED_PARAMETER = re.compile(
    r"(utm_[^=]*|gclid|fbclid|jsessionid|phpsessid|aspsessionid[^=]*)(=|$)", re.IGNORECASE
)
_ASCII_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


def canonical_url(url: str, base: str | None = None) -> str | None:
    """The canonical form of `url`, resolved against `base`; None where it cannot be fetched.

    Equal pages get equal locators, and a locator never depends on the machine. In order:

    1. Surrounding blanks go, as do tabs and line breaks inside; `\\` before the query is `/`.
    2. A relative reference is resolved against `base` (RFC 3986, section 5).
    3. Only http and https, without a user or password, of at most 2,048 characters.
    4. Scheme and host in lower case; the host in IDNA 2008 with UTS 46 mapping; one final dot
       goes; an IPv4 address in any form of WHATWG URL (hexadecimal, octal, one number) becomes
       dotted decimal; IPv6 is compressed.
    5. The default port goes.
    6. Percent-encoding: unreserved characters are decoded, all that a URL may not hold is
       encoded as UTF-8, hexadecimal digits are upper case, a lone `%` becomes `%25`.
    7. Dot segments are resolved; an empty path is `/`. Empty segments stay: servers differ.
    8. The query keeps its order, but parameters that track a reader (`utm_*`, `gclid`, `fbclid`)
       or carry a session (`jsessionid`, `phpsessid`, `aspsessionid*`; `;jsessionid=` in a path)
       go; an empty query goes.
    9. The fragment goes.

    Applying it to its own result changes nothing.
    """
    try:
        parts = urlsplit(urljoin(base, _cleaned(url)) if base else _cleaned(url))
        port = parts.port
    except ValueError:  # an unclosed bracket, a port that is no number, a host NFKC would split
        return None
    if parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc or port == 0:
        return None
    host = _canonical_host(parts.hostname or "")
    if host is None:
        return None
    try:
        path = _remove_dot_segments(_SESSION_SEGMENT.sub("", _normal_escapes(parts.path, "/")))
        query = _clean_query(_normal_escapes(parts.query, "/?"))
    except UnicodeEncodeError:  # a lone surrogate
        return None
    netloc = host if port in (None, _DEFAULT_PORTS[parts.scheme]) else f"{host}:{port}"
    result = f"{parts.scheme}://{netloc}{path}" + (f"?{query}" if query else "")
    return result if len(result) <= MAX_URL_LENGTH else None


def netloc_of(url: str) -> str:
    """`host` or `host:port` of a canonical URL."""
    return url.split("/", 3)[2]


def origin_of(url: str) -> str:
    """`scheme://host[:port]` of a canonical URL: what one robots.txt speaks for."""
    return "/".join(url.split("/", 3)[:3])


class Mirror:
    """Where recorded addresses are really fetched: the longest matching prefix decides."""

    def __init__(self, prefixes: Mapping[str, str]) -> None:
        self._to_real = _longest_first(prefixes.items())
        self._to_recorded = _longest_first((real, name) for name, real in prefixes.items())

    def real(self, recorded: str) -> str:
        """The address to fetch for a recorded one."""
        return _swap_prefix(recorded, self._to_real)

    def recorded(self, real: str) -> str:
        """The address to record for one found in a page or a redirect."""
        return _swap_prefix(real, self._to_recorded)


def _longest_first(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(pairs, key=lambda pair: (-len(pair[0]), pair))


def _swap_prefix(url: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        if url.startswith(old):
            return new + url[len(old) :]
    return url


def _cleaned(url: str) -> str:
    url = re.sub(r"[\t\r\n]", "", url.strip("".join(map(chr, range(33)))))
    head = re.match(r"[^?#]*", url)
    end = head.end() if head else 0
    return url[:end].replace("\\", "/") + url[end:]


def _canonical_host(host: str) -> str | None:
    if ":" in host:
        try:
            return None if "%" in host else f"[{IPv6Address(host).compressed}]"
        except AddressValueError:
            return None
    if not host.isascii():
        import idna

        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except UnicodeError:  # idna.IDNAError among them
            return None
    host = host.lower().removesuffix(".")
    if not _ASCII_HOST.fullmatch(host) or len(host) > 253:
        return None
    return _canonical_ipv4(host) if _NUMBER.fullmatch(host.rsplit(".", 1)[-1]) else host


def _canonical_ipv4(host: str) -> str | None:
    """Dotted decimal of a host whose last label is a number (WHATWG URL, IPv4 parser)."""
    labels = host.split(".")
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        return None
    try:
        *head, last = [_ipv4_number(label) for label in labels]
    except ValueError:
        return None
    if any(number > 255 for number in head) or last >= 256 ** (4 - len(head)):
        return None
    return str(IPv4Address(sum(n << (24 - 8 * i) for i, n in enumerate(head)) + last))


def _ipv4_number(label: str) -> int:
    if label.startswith("0x"):
        return int(label[2:] or "0", 16)
    return int(label, 8) if label.startswith("0") else int(label)


def _normal_escapes(text: str, also_allowed: str) -> str:
    def normal(match: re.Match[str]) -> str:
        escaped, plain, lone = match.groups()
        if lone:
            return "%25"
        if plain:
            return quote(plain, safe=_SUB_DELIMS + also_allowed)
        code = int(escaped, 16)
        return chr(code) if code in _UNRESERVED else f"%{escaped.upper()}"

    return _ESCAPE.sub(normal, text)


def _remove_dot_segments(path: str) -> str:
    """`path` without `.` and `..` (RFC 3986, section 5.2.4), always starting with `/`."""
    segments = path.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments and segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _clean_query(query: str) -> str:
    kept = (part for part in query.split("&") if not _DROPPED_PARAMETER.match(part))
    return "&".join(kept)
