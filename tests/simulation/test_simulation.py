"""The writer's protocol under a thousand seeded schedules, and whether the suite would notice a weaker one.

`SIMULATION_SEED=n` replays one schedule, `SIMULATION_SEEDS` and `SIMULATION_FIRST` say how many and which;
`make prove` runs many that were never run before.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

import pytest
import structlog

from tests.simulation.mutations import MUTATIONS
from tests.simulation.scheduler import Violation
from tests.simulation.world import Simulation, run_seed

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "1000"))
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))
ONE = os.environ.get("SIMULATION_SEED")
AT_ONCE = 50
# The rarest mutations are noticed by one schedule in some hundred.
SEEDS_PER_MUTATION = 1500


def be_quiet() -> None:
    # A process of its own, also because the log's configuration is the whole process's. It computes all the
    # time; tests beside it wait for real processes and should not wait longer.
    os.nice(10)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), be_quiet) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


def run_some(seeds: range) -> tuple[str | None, int]:
    """Run schedules until one breaks a promise; return its message, and how many commits there were."""
    commits = 0
    for seed in seeds:
        try:
            commits += run_seed(seed).oracle.commits
        except Violation as violation:
            return str(violation), commits
    return None, commits


def find_seed(name: str) -> int | None:
    """Return the first schedule that notices a mutation."""
    with MUTATIONS[name]():
        for seed in range(SEEDS_PER_MUTATION):
            try:
                run_seed(seed)
            except Violation:
                return seed
    return None


def trace_of(seed: int) -> list[str]:
    simulation = Simulation(seed)
    simulation.run()
    return [re.sub(r"-[0-9a-f]{8}\.jsonl", ".jsonl", line) for line in simulation.scheduler.trace]


def test_whatever_happens_each_record_is_committed_once_and_every_claim_is_true(
    workers: ProcessPoolExecutor,
) -> None:
    seeds = range(int(ONE), int(ONE) + 1) if ONE else range(FIRST, FIRST + SEEDS)
    pieces = [seeds[start : start + AT_ONCE] for start in range(0, len(seeds), AT_ONCE)]
    commits = 0
    running = [workers.submit(run_some, piece) for piece in pieces]
    for done in as_completed(running):
        message, some = done.result()
        if message:
            for future in running:
                future.cancel()
            pytest.fail(message, pytrace=False)
        commits += some
    assert commits > 2 * len(seeds), "hardly anything was committed: this proves nothing"


@pytest.mark.skipif(ONE is not None, reason="SIMULATION_SEED replays one schedule")
def test_a_seed_replays_step_by_step(workers: ProcessPoolExecutor) -> None:
    # Two processes: each has its own order of hashes.
    assert workers.submit(trace_of, 7).result() == workers.submit(trace_of, 7).result()


@pytest.mark.skipif(ONE is not None, reason="SIMULATION_SEED replays one schedule")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_weaker_protocol_is_noticed(workers: ProcessPoolExecutor, name: str) -> None:
    seed = workers.submit(find_seed, name).result()
    assert seed is not None, f"{name}: {SEEDS_PER_MUTATION} schedules noticed nothing"
