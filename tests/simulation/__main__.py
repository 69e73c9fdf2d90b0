"""Replay one seed with its trace, or run many: `python -m tests.simulation SEED [COUNT]`."""

from __future__ import annotations

import logging
import sys
import time

import structlog
import typer

from tests.simulation.scheduler import Violation
from tests.simulation.world import Simulation, run_seed


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    first, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    if count == 1:
        simulation = Simulation(first)
        try:
            simulation.run()
        finally:
            typer.echo("\n".join(simulation.scheduler.trace))
        return 0
    begin, failed, steps, commits = time.monotonic(), 0, 0, 0
    for seed in range(first, first + count):
        try:
            done = run_seed(seed)
        except Violation as violation:
            failed += 1
            typer.echo(str(violation).rpartition("\n")[2][:300])
        else:
            steps += done.scheduler.steps
            commits += done.oracle.commits
    took = time.monotonic() - begin
    typer.echo(
        f"{count} seeds, {failed} failed, {steps} steps, {commits} commits, {count / took:.1f} seeds/s"
    )
    return 1 if failed else 0


sys.exit(main())
