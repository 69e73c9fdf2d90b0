"""The simulator's server in a thread of its own, for tests that ask it from theirs."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.server import Simulator


@contextmanager
def serving(**options: Any) -> Iterator[Simulator]:
    """Run a simulator on a free port."""
    simulator = Simulator(SimulatorConfig(port=0, **options))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(simulator.start(), loop).result(10)
        try:
            yield simulator
        finally:
            asyncio.run_coroutine_threadsafe(simulator.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def order(simulator: Simulator, fault: str, **parameters: Any) -> None:
    """Order a fault by the control endpoint: `order(simulator, "delist", market="KRW-XRP")`."""
    body = json.dumps({"fault": fault, **parameters}).encode()
    with urllib.request.urlopen(f"{simulator.rest_url}/simulator/fault", body, timeout=5):
        pass
