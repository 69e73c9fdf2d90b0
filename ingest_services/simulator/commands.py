"""`cryptostream simulate`: the simulator as a process."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from ingest_services import logs
from ingest_services.errors import UserError
from ingest_services.simulator.config import DEFAULT_TICKERS, SimulatorConfig, many_tickers
from ingest_services.simulator.faults import FaultError, Scheduled, read_scheduled

if TYPE_CHECKING:
    from ingest_services.simulator.server import Simulator

log = structlog.get_logger()


def simulate(
    port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one.")] = 8765,
    tickers: Annotated[str, typer.Option(help="Tickers that exist, separated by commas.")] = ",".join(
        DEFAULT_TICKERS
    ),
    markets: Annotated[
        int | None, typer.Option(help="So many made-up markets instead; 855 is the whole exchange.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Books per second and ticker.")] = 2.0,
    total_rate: Annotated[
        float | None, typer.Option(help="Books per second of all tickers together, instead of --rate.")
    ] = None,
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
    limits: Annotated[
        bool, typer.Option("--limits", help="Keep the exchange's limits: connections, messages, Origin, 418.")
    ] = False,
    snapshot_delay: Annotated[
        str, typer.Option(help="Milliseconds from a subscription to its first frames; the exchange: 170-350.")
    ] = "0",
    fault: Annotated[
        list[str] | None,
        typer.Option(help="name[:key=value,...]@seconds[+every]; may be given often. See docs/simulator.md."),
    ] = None,
    chaos: Annotated[int | None, typer.Option(help="Strike at random for ever, with this seed.")] = None,
    chaos_every: Annotated[float, typer.Option(help="Seconds between two random faults, on average.")] = 10.0,
    journal: Annotated[
        Path | None, typer.Option(help="Write what was sent, withheld and published to this file.")
    ] = None,
    journal_memory: Annotated[
        bool, typer.Option("--journal-memory", help="Keep that in memory, for GET /simulator/journal.")
    ] = False,
) -> None:
    """Run a local Upbit: WebSocket, REST and the ground truth of what it sent, on one port."""
    # The web server is imported when it is wanted: every other command is read from the same command line.
    from ingest_services.simulator.server import Simulator

    names = tuple(part.strip() for part in tickers.split(",")) if markets is None else many_tickers(markets)
    config = SimulatorConfig(
        port=port,
        tickers=names,
        rate=rate if total_rate is None else total_rate / len(names),
        seed=seed,
        history_minutes=history_minutes,
        depth=depth,
        playback=playback,
        speed=speed,
        shift=shift,
        loop=loop,
        idle_timeout_s=idle_timeout,
        limits=limits,
        snapshot_delay_ms=read_delay(snapshot_delay),
        faults=tuple(map(_read_fault, fault or ())),
        chaos_seed=chaos,
        chaos_every_s=chaos_every,
        journal=journal,
        journal_in_memory=journal_memory,
    )
    simulator = Simulator(config)
    logs.setup_logging()
    asyncio.run(run(simulator))


def read_delay(text: str) -> tuple[float, float]:
    """Read a delay or a span of delays in ms: `250`, `170-350`.

    Raises:
        UserError: If it is neither.
    """
    low, _, high = text.partition("-")
    try:
        return float(low), float(high or low)
    except ValueError:
        raise UserError(f"--snapshot-delay {text}: must be milliseconds like 250 or 170-350") from None


def _read_fault(text: str) -> Scheduled:
    try:
        return read_scheduled(text)
    except FaultError as error:
        raise UserError(f"--fault {error}") from error


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
