from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.crawling.urls import Mirror, canonical_url, netloc_of, origin_of

# The rules, one line each. Cases of dot segments are of RFC 3986, 5.4; of hosts, of WHATWG URL.
TABLE = [
    # scheme, host and port
    ("HTTP://EXAMPLE.com/", "http://example.com/"),
    ("http://example.com", "http://example.com/"),
    ("http://example.com:80/", "http://example.com/"),
    ("https://example.com:443/", "https://example.com/"),
    ("https://example.com:80/", "https://example.com:80/"),
    ("http://example.com:/", "http://example.com/"),
    ("http://example.com.:8080/", "http://example.com:8080/"),
    ("http://bücher.example/", "http://xn--bcher-kva.example/"),
    ("http://BÜCHER.example/", "http://xn--bcher-kva.example/"),
    ("http://faß.example/", "http://xn--fa-hia.example/"),
    ("http://１２７.0.0.1/", "http://127.0.0.1/"),
    ("http://2130706433/", "http://127.0.0.1/"),
    ("http://0x7f000001/", "http://127.0.0.1/"),
    ("http://0x7f.1/", "http://127.0.0.1/"),
    ("http://017700000001/", "http://127.0.0.1/"),
    ("http://127.1/", "http://127.0.0.1/"),
    ("http://256.1.1.1/", None),
    ("http://1.2.3.4.5/", None),
    ("http://1.2.3.09/", None),
    ("http://[2001:DB8:0::1]:80/", "http://[2001:db8::1]/"),
    ("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
    ("http://[::1", None),
    ("http://[fe80::1%25eth0]/", None),
    ("http://my_host.example/", "http://my_host.example/"),
    ("http://a..b/", None),
    ("http://exa mple.com/", None),
    ("http:///path", None),
    ("http://example.com:0/", None),
    ("http://example.com:99999/", None),
    ("http://example.com:eighty/", None),
    # what is refused
    ("ftp://example.com/", None),
    ("javascript:alert(1)", None),
    ("mailto:someone@example.com", None),
    ("http://user@example.com/", None),
    ("http://user:password@example.com/", None),
    ("/relative", None),
    ("", None),
    ("http://example.com/" + "a" * 2030, None),
    ("http://example.com/\ud800", None),
    # path
    ("http://example.com/a/./b/../c", "http://example.com/a/c"),
    ("http://example.com/a/b/..", "http://example.com/a/"),
    ("http://example.com/a/b/.", "http://example.com/a/b/"),
    ("http://example.com/../../x", "http://example.com/x"),
    ("http://example.com/a/%2e%2E/b", "http://example.com/b"),
    ("http://example.com//a//b", "http://example.com//a//b"),
    ("http://example.com/%7euser/%41", "http://example.com/~user/A"),
    ("http://example.com/a%2fb", "http://example.com/a%2Fb"),
    ("http://example.com/%zz%4", "http://example.com/%25zz%254"),
    ("http://example.com/é ü", "http://example.com/%C3%A9%20%C3%BC"),
    ('http://example.com/a"<b>', "http://example.com/a%22%3Cb%3E"),
    ("http://example.com/a;b=1,2", "http://example.com/a;b=1,2"),
    ("http://example.com/a;jsessionid=1F?b=2", "http://example.com/a?b=2"),
    ("http:\\\\example.com\\a", "http://example.com/a"),
    (" \t http://example.com/a\nb \n", "http://example.com/ab"),
    # query and fragment
    ("http://example.com/?b=2&a=1", "http://example.com/?b=2&a=1"),
    ("http://example.com/?", "http://example.com/"),
    ("http://example.com/?UTM_source=x&a=1&gclid=2&fbclid=3", "http://example.com/?a=1"),
    ("http://example.com/?utm_source=x", "http://example.com/"),
    ("http://example.com/?utmost=1&xgclid=2", "http://example.com/?utmost=1&xgclid=2"),
    ("http://example.com/?PHPSESSID=1&q=%c3%a9", "http://example.com/?q=%C3%A9"),
    ("http://example.com/?q=a\\b", "http://example.com/?q=a%5Cb"),
    ("http://example.com/a#b?c", "http://example.com/a"),
]


@pytest.mark.parametrize("url, expected", TABLE)
def test_the_canonical_form_of_each_kind_of_url_is_pinned(url, expected):
    assert canonical_url(url) == expected


# RFC 3986, 5.4.1 and 5.4.2, but for the fragments, which go, and for `http:g`.
RFC3986 = {
    "g": "/b/c/g", "./g": "/b/c/g", "g/": "/b/c/g/", "/g": "/g", "?y": "/b/c/d;p?y",
    "g?y": "/b/c/g?y", "#s": "/b/c/d;p?q", "g#s": "/b/c/g", ";x": "/b/c/;x", "g;x": "/b/c/g;x",
    "g;x?y#s": "/b/c/g;x?y", "": "/b/c/d;p?q", ".": "/b/c/", "./": "/b/c/", "..": "/b/",
    "../": "/b/", "../g": "/b/g", "../..": "/", "../../": "/", "../../g": "/g",
    "../../../g": "/g", "../../../../g": "/g", "/./g": "/g", "/../g": "/g", "g.": "/b/c/g.",
    ".g": "/b/c/.g", "g..": "/b/c/g..", "..g": "/b/c/..g", "./../g": "/b/g", "./g/.": "/b/c/g/",
    "g/./h": "/b/c/g/h", "g/../h": "/b/c/h", "g;x=1/./y": "/b/c/g;x=1/y", "g;x=1/../y": "/b/c/y",
    "g?y/./x": "/b/c/g?y/./x", "g?y/../x": "/b/c/g?y/../x",
}  # fmt: skip


@pytest.mark.parametrize("reference", RFC3986)
def test_relative_references_resolve_as_rfc_3986_lists(reference):
    assert canonical_url(reference, "http://a/b/c/d;p?q") == "http://a" + RFC3986[reference]


@given(
    st.one_of(
        st.text(max_size=60),
        st.builds("http://{}/{}?{}".format, st.text(max_size=12), st.text(), st.text()),
        st.from_regex(r"https?://[a-z0-9.:%\[\]_-]{1,20}(/[!-~]{0,8}){0,4}(\?[!-~]{0,20})?"),
    )
)
@example("http://a/;jsess;jsessionid=1ionid=2/..;jsessionid=3/b")
@example("http://a/%2541%4%31?%&&=&utm_a&%75tm_b=1")
def test_a_canonical_url_is_its_own_canonical_form(url):
    once = canonical_url(url)
    if once is not None:
        assert once.isascii()
        assert canonical_url(once) == once
        assert once.startswith(origin_of(once) + "/")
        assert netloc_of(once) in origin_of(once)


def test_a_mirrored_address_goes_there_and_back():
    mirror = Mirror(
        {
            "https://docs.example/": "http://127.0.0.1:8000/",
            "https://docs.example/old/": "http://127.0.0.1:9000/archive/",
        }
    )
    there = {
        "https://docs.example/a?b": "http://127.0.0.1:8000/a?b",
        "https://docs.example/old/a": "http://127.0.0.1:9000/archive/a",
        "https://other.example/": "https://other.example/",
    }
    for recorded, real in there.items():
        assert mirror.real(recorded) == real
        assert mirror.recorded(real) == recorded
    assert mirror.recorded("http://127.0.0.1:80001/") == "http://127.0.0.1:80001/"
