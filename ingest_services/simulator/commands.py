"""`cryptostream simulate`: the simulator as a process."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from ingest_services import logs
from ingest_services.simulator.config import DEFAULT_TICKERS, SimulatorConfig

if TYPE_CHECKING:
    from ingest_services.simulator.server import Simulator

log = structlog.get_logger()


def simulate(
    port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one.")] = 8765,
    tickers: Annotated[str, typer.Option(help="Tickers that exist, separated by commas.")] = ",".join(
        DEFAULT_TICKERS
    ),
    rate: Annotated[float, typer.Option(help="Books per second and ticker.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of the random walk.")] = 1,
    history_minutes: Annotated[
        float, typer.Option(help="Minutes of back-dated books for a ticker's first subscriber; 0 is none.")
    ] = 30.0,
    depth: Annotated[int, typer.Option(help="Levels a side of the books, at most 30.")] = 30,
    playback: Annotated[
        Path | None, typer.Option(help="Play this recording (JSON lines of received_us and frame) instead.")
    ] = None,
    speed: Annotated[
        float, typer.Option(help="Of the playback: 1 = recorded pace, 0 = as fast as possible.")
    ] = 1.0,
    shift: Annotated[
        bool, typer.Option("--shift/--no-shift", help="Move the recording's stamps to now, by whole seconds.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Play again from the start; needs --shift.")] = False,
    idle_timeout: Annotated[
        float, typer.Option(help="Seconds without traffic after which a socket dies, as on Upbit.")
    ] = 60.0,
) -> None:
    """Run a local Upbit: WebSocket, REST and the ground truth of what it sent, on one port."""
    # The web server is imported when it is wanted: every other command is read from the same command line.
    from ingest_services.simulator.server import Simulator

    config = SimulatorConfig(
        port=port,
        tickers=tuple(part.strip() for part in tickers.split(",")),
        rate=rate,
        seed=seed,
        history_minutes=history_minutes,
        depth=depth,
        playback=playback,
        speed=speed,
        shift=shift,
        loop=loop,
        idle_timeout_s=idle_timeout,
    )
    simulator = Simulator(config)
    logs.setup_logging()
    asyncio.run(run(simulator))


async def run(simulator: Simulator) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UserError: If the port cannot be opened.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with simulator:
        log.info("simulator listening", websocket=simulator.ws_url, rest=simulator.rest_url)
        waits = {asyncio.create_task(stopped.wait()), asyncio.create_task(simulator.wait())}
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            # A publisher that failed must not look like a quiet market.
            task.result()
    log.info("simulator stopped")
