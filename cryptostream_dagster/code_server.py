"""Dagster's code server, started again: first it ends the runs that the one before took with it.

`python -m cryptostream_dagster.code_server ARGUMENTS` is `dagster api grpc ARGUMENTS`. Runs are processes of
the code server's own group; when it is killed with them, nobody tells the instance, and until their time is
over they would count as being built. Belongs here: nothing else.
"""

from __future__ import annotations

import os
import sys

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

_LAUNCHED = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def end_lost_runs(instance: DagsterInstance) -> int:
    """Mark every run that a code server had launched as failed; return how many there were.

    Args:
        instance: Of which no code server runs at the moment.
    """
    lost = instance.get_runs(RunsFilter(statuses=_LAUNCHED))
    for run in lost:
        instance.report_run_failed(run, "The code server ended, and this run's process with it.")
    return len(lost)


def main() -> None:
    """End what was lost, then become the code server."""
    with DagsterInstance.get() as instance:
        end_lost_runs(instance)
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "api", "grpc", *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
