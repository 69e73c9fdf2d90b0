"""Faults put into effect: on which connections, when, and what has been done so far."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count

import structlog

from ingest_services.simulator.exchange import Exchange
from ingest_services.simulator.faults import FAULTS, Fault, FaultError, Scheduled, chaos
from ingest_services.simulator.feed import Feed
from ingest_services.simulator.gate import Gate
from ingest_services.simulator.journal import Journal
from ingest_services.simulator.session import Session

_REMEMBERED = 10_000

log = structlog.get_logger()


class Injector:
    """Strikes the open connections, the gate and the list of markets."""

    def __init__(
        self,
        exchange: Exchange,
        gate: Gate,
        sessions: Iterable[Session],
        new_feed: Callable[[str], Feed],
        journal: Journal | None,
    ) -> None:
        """Take what can be struck.

        Args:
            exchange: The markets.
            gate: What stands before WebSocket and REST.
            sessions: Open connections, looked at anew for each fault.
            new_feed: Makes the books of a market that is listed, from its code.
            journal: Is told of each fault.
        """
        self._exchange = exchange
        self._gate = gate
        self._sessions = sessions
        self._new_feed = new_feed
        self._journal = journal
        self._applied: deque[dict[str, object]] = deque(maxlen=_REMEMBERED)

    def strike(self, fault: Fault, by: str) -> list[str]:
        """Put a fault into effect now.

        Args:
            fault: What, and on whom.
            by: Who asks, for the list of what was done.

        Returns:
            The tickets of the connections that it struck; empty text for one that has not subscribed yet.

        Raises:
            FaultError: If it lists a market that is listed, or delists one that is not.
        """
        struck: list[Session] = []
        if fault.whole_exchange:
            self._strike_exchange(fault)
        else:
            struck = [session for session in chosen(list(self._sessions), fault) if session.suffer(fault)]
        tickets = [session.ticket for session in struck]
        at_us = time.time_ns() // 1000
        self._applied.append({"at_us": at_us, "fault": fault.as_json(), "applied_to": tickets, "by": by})
        if self._journal is not None:
            self._journal.fault(fault.as_json(), by, [session.number for session in struck])
        log.info("fault", **fault.as_json(), by=by, applied_to=tickets)
        return tickets

    def report(self) -> dict[str, object]:
        """Return what can be asked and what was done, as `GET /simulator/faults` tells it."""
        return {"faults": [_described(name) for name in FAULTS], "applied": list(self._applied)}

    async def follow(self, scheduled: Scheduled) -> None:
        """Strike at the times of a schedule, which start now."""
        start = asyncio.get_running_loop().time()
        for number in count():
            await _sleep_until(start + scheduled.at_s + number * (scheduled.every_s or 0))
            self._strike_or_say_why_not(scheduled.fault, "schedule")
            if scheduled.every_s is None:
                return

    async def rage(self, seed: int, every_s: float) -> None:
        """Strike at random, for ever; see `faults.chaos`."""
        at = asyncio.get_running_loop().time()
        for pause_s, fault in chaos(seed, every_s, sorted(self._exchange.feeds)):
            at += pause_s
            await _sleep_until(at)
            self._strike_or_say_why_not(fault, "chaos")

    def _strike_or_say_why_not(self, fault: Fault, by: str) -> None:
        try:
            self.strike(fault, by)
        except FaultError as error:
            log.warning("fault is impossible", **fault.as_json(), by=by, error=str(error))

    def _strike_exchange(self, fault: Fault) -> None:
        try:
            if fault.name == "list":
                self._exchange.list_market(self._new_feed(fault.text("market")))
            elif fault.name == "delist":
                self._exchange.delist_market(fault.text("market"))
            else:
                self._gate.order(fault)
        except ValueError as error:
            raise FaultError(f"{fault.name}: {error}") from error


def chosen(sessions: Sequence[Session], fault: Fault) -> list[Session]:
    """Return the connections that a fault is meant for, oldest first."""
    in_order = sorted(sessions, key=lambda session: session.number)
    match fault.target:
        case {"ticket": str(start)}:
            return [session for session in in_order if session.ticket.startswith(start)]
        case {"section": str(name)}:
            return [s for s in in_order if s.ticket == name or s.ticket.startswith(f"{name}-")]
        case {"newest": True}:
            return in_order[-1:]
    return in_order


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(at - asyncio.get_running_loop().time())


def _described(name: str) -> dict[str, object]:
    kind = FAULTS[name]
    return {
        "fault": name,
        "meaning": kind.meaning,
        "of": "the whole exchange" if kind.whole_exchange else "connections",
        "parameters": [
            {
                "name": p.name,
                "type": p.kind.__name__,
                "meaning": p.meaning,
                "required": p.required,
                **({"default": p.default} if p.default is not None else {}),
                **({"choices": p.choices} if p.choices else {}),
            }
            for p in kind.parameters
        ],
    }
