"""The pages of the UI that people use, as a browser shows them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.deploy.stack import STEPS, Stack, running_stack

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("ui")) as running:
        yield running


class Browser:
    """A browser on the stack's UI; it may ask nothing of any other host."""

    def __init__(self, page, stack: Stack) -> None:
        self.page, self.stack, self.outside = page, stack, []
        page.route("**/*", self._confine)

    def _confine(self, route) -> None:
        if route.request.url.startswith(self.stack.places.ui_url):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def sees(self, path: str, *texts: str) -> None:
        """Opens a page and waits until each text is on it."""
        self.page.goto(self.stack.places.ui_url + path)
        for text in texts:
            self.page.get_by_text(text, exact=True).first.wait_for(timeout=60_000)


@pytest.fixture(scope="module")
def browser(stack: Stack) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield Browser(chromium.new_page(viewport={"width": 1600, "height": 1200}), stack)
        chromium.close()


def test_the_deployments_are_listed_with_their_schedules(browser: Browser) -> None:
    schedules = ["At 01:00 AM every day", "At 04:00 AM every day"]
    browser.sees("/deployments", "3 Deployments", "corpus", "model", "pipeline", *schedules)


def test_the_form_shows_descriptions_defaults_and_choices(browser: Browser) -> None:
    deployment = browser.stack.get("deployments/name/pipeline/tiny")
    described = [
        "A pipeline: sources, the corpus grown from them, and the model trained on it.",
        "Processes that work on shards at a time; on a Dask cluster elsewhere, what it has.",
        "Look at every source again, however lately it was read.",
    ]
    browser.sees(f"/deployments/deployment/{deployment['id']}/run", *described)
    values = browser.page.locator("textarea, input").evaluate_all("all => all.map(e => e.value)")
    assert "tiny" in values
    assert str(STEPS) in values
    choices = browser.page.locator(".p-select-button").all_inner_texts()
    assert {"word", "bpe", "cpu", "muon"} <= set(choices)


def test_a_run_that_the_form_starts_carries_the_config(browser: Browser) -> None:
    """What the form sends, untouched, is the config it was opened with."""
    from flows.config import PipelineConfig, read_config

    deployment = browser.stack.get("deployments/name/corpus/tiny")
    browser.sees(f"/deployments/deployment/{deployment['id']}/run", "Most documents in a shard.")
    with browser.page.expect_response(re.compile("create_flow_run")) as sent_by_the_form:
        browser.page.get_by_role("button", name="Submit").click()
    run = sent_by_the_form.value.json()
    sent = PipelineConfig.model_validate(run["parameters"]["config"])
    assert sent == read_config(browser.stack.places.root / "tiny.toml")
    assert browser.stack.wait_for_end(run["id"])["type"] == "COMPLETED"
    stages = ["ingest", "extract", "annotate", "dedup", "scrub", "split"]
    browser.page.goto(f"{browser.stack.places.ui_url}/runs/flow-run/{run['id']}?tab=Task+Runs")
    for stage in stages:
        browser.page.get_by_text(re.compile(f"^{stage}-")).first.wait_for(timeout=60_000)


def test_the_pages_ask_nothing_of_other_hosts(browser: Browser) -> None:
    assert not browser.outside
