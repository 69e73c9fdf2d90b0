"""What a person sees in the Dagster UI, looked at with a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from cryptostream_dagster.client import Client
from tests.stack import LocalStack, until

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ASSETS = ("raw_orderbook", "orderbook_parquet", "ohlc_5m_ticker")
PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        missing = f"no {' or '.join(BROWSERS)} on this machine (Debian: apt install chromium)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root; the page is our own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield page
        browser.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go; SCREENSHOTS keeps them, for the README and for a look after a failure."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def first_window(stack: LocalStack) -> str:
    """The partition key of the first window, once all of the history is built."""
    with Client.from_state(stack.state) as client:
        until(lambda: len(client.candles("BTC")) >= 6, 60, stack.said)
        return f"{client.candles('BTC').index[0]:%Y-%m-%dT%H:%M%z}"


def test_the_asset_graph_shows_the_way_from_books_to_candles(
    local_stack: LocalStack, page: Page, pictures: Path
) -> None:
    first_window(local_stack)
    page.goto(f"{local_stack.url()}/asset-groups")
    for asset in ASSETS:
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    # A node begins with how many of its partitions are built.
    expect(page.get_by_text("Loading")).to_have_count(0)
    page.screenshot(path=pictures / "asset-graph.png")


def test_a_built_window_shows_its_metadata(local_stack: LocalStack, page: Page, pictures: Path) -> None:
    key = quote(first_window(local_stack))
    page.goto(f"{local_stack.url()}/assets/ohlc_5m_ticker?view=partitions&partition={key}")
    expect(page.get_by_text("Materialized", exact=True).first).to_be_visible()
    expect(page.get_by_text("busiest_tickers")).to_be_visible()
    page.screenshot(path=pictures / "partition.png")
