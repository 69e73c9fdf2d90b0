"""Giving a topic up, and taking it up again: `docs/commit-chain.md`, "Retirement"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake.audit import BrokerLog
from ingest_services.lake.chain import Chain
from ingest_services.lake.store import ObjectStore

AskLog = Callable[[], BrokerLog | None]


@dataclass(frozen=True, slots=True)
class Retirement:
    """What was done.

    Attributes:
        chain: The chain that closes the topic's last one.
        given_up: Records that the broker had and the lake has not, by partition; None: nobody knows.
    """

    chain: Chain
    given_up: Mapping[int, int] | None


def retire_topic(
    store: ObjectStore, topic: str, ask_log: AskLog, now_ms: int, *, force: bool = False
) -> Retirement:
    """Close a topic's chain for good, so that windows no longer wait for it.

    Args:
        store: The lake.
        topic: The topic.
        ask_log: Asks the broker for the topic's log; None if it does not have the topic. It is called after
            the tails were read.
        now_ms: ms since the epoch.
        force: Give up what the broker holds and the lake does not; also if the broker does not answer.

    Raises:
        UserError: If the lake has no open chain of the topic, somebody still carries it, or the broker has
            records that the lake has not.
    """
    known = chains.read_chains(store)
    current = chains.current_chain(known, topic)
    if current is None:
        topics = sorted({chain.topic for chain in known})
        raise UserError(f"{store.url} has no chain of topic {topic}; it has {', '.join(topics) or 'none'}")
    if current.retires:
        raise UserError(f"topic {topic} was retired already (chain {current.number}: {current.reason})")
    ends = {partition: chains.find_tail(store, current, partition) for partition in current.partitions}
    given_up = _not_in_lake(current, ends, ask_log, force)
    if given_up and not force:
        told = ", ".join(f"{count} of partition {p}" for p, count in sorted(given_up.items()))
        raise UserError(
            f"the broker holds records of topic {topic} that are not in the lake: {told}; let its consumers "
            "finish, or give those records up with --force"
        )
    lost = "unknown" if given_up is None else sum(given_up.values())
    reason = "retired" if not given_up and given_up is not None else f"retired, records given up: {lost}"
    return Retirement(chains.retire(store, current, ends, now_ms, reason), given_up)


def take_up_topic(store: ObjectStore, topic: str, ask_log: AskLog, now_ms: int) -> Chain:
    """Open a new chain of a retired topic; it goes on where the last one ended.

    Raises:
        UserError: If the topic is not retired, or the broker does not have it, or it changes meanwhile.
    """
    current = chains.current_chain(chains.read_chains(store), topic)
    if current is None or not current.retires:
        raise UserError(f"topic {topic} is not retired; start its consumers")
    log = _require_log(topic, ask_log())

    def log_end() -> Mapping[int, int]:
        now = _require_log(topic, ask_log())
        if (now.topic_id, now.start.keys()) != (log.topic_id, log.start.keys()):
            raise UserError(f"topic {topic} was changed while we looked at it; try again")
        return now.end

    return chains.open_chain(store, topic, log.topic_id, log.start, log_end, now_ms, unretire=True)


def _not_in_lake(
    chain: Chain, ends: Mapping[int, int], ask_log: AskLog, force: bool
) -> Mapping[int, int] | None:
    try:
        log = ask_log()
    except UserError:
        if not force:
            raise
        return None
    if log is None:
        return {}
    # A re-created topic's log is another one: everything in it is beyond our end.
    begun = ends if log.topic_id == chain.topic_id else log.start
    counts = {p: end - max(begun.get(p, 0), log.start[p]) for p, end in log.end.items()}
    return {p: count for p, count in counts.items() if count > 0}


def _require_log(topic: str, log: BrokerLog | None) -> BrokerLog:
    if log is None:
        raise UserError(f"topic {topic} does not exist; create it with: cryptostream topic")
    return log
