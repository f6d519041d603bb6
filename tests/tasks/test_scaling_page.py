from __future__ import annotations

from html.parser import HTMLParser

from llm.scaling import Prediction, Scaling, Trained
from llm.scaling_fit import Point
from llm.scaling_law import Law
from tasks.scaling_page import render_scaling

LAW = Law(E=1.0, A=40.0, alpha=0.4, B=100.0, beta=0.4)


def made(check: bool) -> Scaling:
    runs = tuple(
        Trained(depth, 16 * depth, Point(depth * 10**5, tokens, LAW.loss(depth * 10**5, tokens)))
        for depth in (1, 2, 4)
        for tokens in (100_000, 200_448)
    )
    prediction = Prediction(10**6, 400_000, 2.0, 1.9, 2.1)
    last = Trained(8, 128, Point(10**6, 400_384, 2.02))
    return Scaling(runs, LAW, prediction, last if check else None)


class Counted(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_every_run_is_a_dot_in_both_charts_and_a_row() -> None:
    page = Counted(render_scaling("x", made(check=True)))
    assert page.count("figure") == 2
    assert page.count("circle") == 2 * (6 + 1)
    assert page.count("tr") == 1 + 6 + 1


def test_dots_lie_where_the_law_that_made_them_runs() -> None:
    page = Counted(render_scaling("x", made(check=False)))
    for _, circle in ((tag, values) for tag, values in page.tags if tag == "circle"):
        assert 0 <= float((circle["cx"] or "").rstrip("%")) <= 100
        assert 0 <= float((circle["cy"] or "").rstrip("%")) <= 100


def test_the_page_says_what_was_predicted_and_reached() -> None:
    page = render_scaling("x", made(check=True))
    assert "2.0000" in page
    assert "2.0200" in page
    assert "+1.00 %" in page
    assert "reached" not in render_scaling("x", made(check=False))


def test_a_name_is_text_and_the_page_runs_no_script() -> None:
    page = render_scaling("<script>alert(1)</script>", made(check=True))
    assert "<script" not in page
    assert "default-src 'none'" in page
