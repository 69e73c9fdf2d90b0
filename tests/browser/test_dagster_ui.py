"""What a person sees in the Dagster UI, looked at with a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from cryptostream_dagster.client import Client
from cryptostream_dagster.warehouse.connection import connect
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


def ask_dagster(stack: LocalStack, query: str) -> Any:
    """Ask the webserver's GraphQL."""
    request = Request(
        f"{stack.url()}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request) as answer:
        return json.load(answer)["data"]


def launch(page: Page, stack: LocalStack, asset: str, partitions: str) -> None:
    """Materialize partitions of an asset as a person does, and wait for the dialog to be gone."""
    page.goto(f"{stack.url()}/assets/{asset}")
    page.get_by_role("button", name="Materialize").first.click()
    selection = page.locator('input[placeholder^="ex:"]')
    selection.fill(partitions)
    selection.press("Enter")
    button = page.get_by_role("button", name=re.compile("^Launch (backfill|run|1 run)$"))
    expect(button).to_be_enabled()
    button.click()
    expect(page.get_by_text("Partition selection")).to_have_count(0)


def wait_for_a_run(stack: LocalStack, partition: str, job: str = "__ASSET_JOB") -> None:
    """Wait until a run that a person launched for one partition has succeeded."""
    query = (
        f'{{runsOrError(filter: {{pipelineName: "{job}", tags: [{{key: "dagster/partition", '
        f'value: "{partition}"}}]}}) {{... on Runs {{results {{status}}}}}}}}'
    )

    def statuses() -> set[str]:
        return {run["status"] for run in ask_dagster(stack, query)["runsOrError"]["results"]}

    until(lambda: "SUCCESS" in statuses(), 90, stack.said)


def test_the_asset_graph_shows_the_way_from_books_to_candles(
    local_stack: LocalStack, page: Page, pictures: Path
) -> None:
    first_window(local_stack)
    page.goto(f"{local_stack.url()}/locations/cryptostream/asset-groups/orderbook")
    for asset in ASSETS:
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    # A node begins with how many of its partitions are built.
    expect(page.get_by_text("Loading")).to_have_count(0)
    page.screenshot(path=pictures / "asset-graph.png")


def test_an_asset_says_what_it_is_and_what_its_columns_may_hold(
    local_stack: LocalStack, page: Page, pictures: Path
) -> None:
    page.goto(f"{local_stack.url()}/assets/ohlc_5m_ticker")
    expect(page.get_by_role("link", name=re.compile("Open ohlc_5m_ticker.py"))).to_be_visible()
    for text in ("public.ohlc_5m_ticker", "Mid of the first book in the window", "> 0"):
        expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()
    page.screenshot(path=pictures / "asset.png")


def test_a_window_shows_pictures_in_its_metadata(local_stack: LocalStack, page: Page, pictures: Path) -> None:
    key = first_window(local_stack)
    launch(page, local_stack, "ohlc_5m_ticker", f'"{key}"')
    wait_for_a_run(local_stack, key)
    page.goto(f"{local_stack.url()}/assets/ohlc_5m_ticker?view=partitions&partition={quote(key)}")
    expect(page.get_by_text("Materialized", exact=True).first).to_be_visible()
    expect(page.get_by_text("busiest_tickers")).to_be_visible()
    shown = page.get_by_text("[Show Markdown]")
    expect(shown).to_have_count(2)
    for number, name in enumerate(("picture_of_day", "picture_of_window")):
        expect(page.get_by_text(name)).to_be_visible()
        shown.nth(number).click()
        picture = page.locator('img[src^="data:image/svg+xml,"]')
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.complete && image.naturalWidth") == 640
        page.wait_for_timeout(500)  # the dialog fades in, for the screenshot's sake
        page.screenshot(path=pictures / f"{name}.png")
        page.get_by_role("button", name="Close").click()
        expect(picture).to_have_count(0)
    page.screenshot(path=pictures / "partition.png")


def test_a_backfill_of_a_range_is_launched_from_the_ui(
    local_stack: LocalStack, page: Page, pictures: Path
) -> None:
    first = datetime.strptime(first_window(local_stack), "%Y-%m-%dT%H:%M%z")
    first, last = (f"{first + n * timedelta(minutes=5):%Y-%m-%dT%H:%M%z}" for n in (1, 3))
    launch(page, local_stack, "ohlc_5m_ticker", f'["{first}"..."{last}"]')
    query = "{partitionBackfillsOrError {... on PartitionBackfills {results {id status partitionNames}}}}"

    def ours() -> dict[str, Any]:
        found = ask_dagster(local_stack, query)["partitionBackfillsOrError"]["results"]
        return next((b for b in found if b["partitionNames"][::2] == [first, last]), {})

    until(lambda: ours().get("status", "").startswith("COMPLETED"), 120, local_stack.said)
    page.goto(f"{local_stack.url()}/runs/b/{ours()['id']}")
    expect(page.get_by_text("Succeeded", exact=True).first).to_be_visible()
    expect(page.get_by_text("100% completed")).to_be_visible()
    page.screenshot(path=pictures / "backfill.png")


def test_a_check_that_failed_says_why_and_of_which_window(
    local_stack: LocalStack, page: Page, pictures: Path
) -> None:
    start = datetime.strptime(first_window(local_stack), "%Y-%m-%dT%H:%M%z") + timedelta(minutes=5)
    key = f"{start:%Y-%m-%dT%H:%M%z}"
    with Client.from_state(local_stack.state) as client, connect(client.settings) as warehouse:

        def lose(rows: int) -> None:
            warehouse.execute(
                "UPDATE parquet_file SET sealed_rows = sealed_rows - %s "
                "WHERE window_start = %s AND ticker = 'BTC'",
                (rows, start),
            )
            warehouse.commit()

        lose(3)
        try:
            launch(page, local_stack, "orderbook_parquet", f'"{key}"')
            wait_for_a_run(local_stack, key)
        finally:
            lose(-3)
    page.goto(f"{local_stack.url()}/assets/orderbook_parquet?view=checks&checkDetail=rows_add_up")
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(page.get_by_text(re.compile("^BTC: sealed [0-9]+, accounted for [0-9]+;"))).to_be_visible()
    expect(page.get_by_text(key).first).to_be_visible()
    page.screenshot(path=pictures / "check-that-failed.png")
