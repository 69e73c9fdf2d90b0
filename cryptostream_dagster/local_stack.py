"""The whole platform as child processes on one machine: what `make dev` and `make demo` start.

Belongs here: which programs there are, in which order they start, what happens when one dies. Does not belong
here: how processes are ended (`local.processes`), what the folder holds (`local.state`), what is shown
(`local.status`, `local.view`). The children are the programs that run anywhere else; they get settings, as
environment variables, and nothing tells them that this is a local stack. All of them listen on loopback only.

Policy: a child that dies while the stack is starting ends the stack, with the reason it gave. Later, Postgres
or the broker dying ends the stack (the broker's memory is gone, the rest would only wait); any other child is
started again, ever more slowly.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import psycopg
from rich.console import Console

from cryptostream_dagster.local import broker, ports
from cryptostream_dagster.local.ports import LOOPBACK
from cryptostream_dagster.local.postgres import EmbeddedPostgres
from cryptostream_dagster.local.processes import (
    Child,
    Program,
    Reaper,
    end_leftovers,
    stop_in_order,
    write_list,
)
from cryptostream_dagster.local.state import STATES_FOLDER, StateFolder
from cryptostream_dagster.local.status import Observer, fetch_json, fetch_metrics, total
from cryptostream_dagster.local.view import View, banner, open_view
from cryptostream_dagster.settings import PipelineSettings
from ingest_services import config
from ingest_services.errors import UserError
from ingest_services.lake.stores import open_store
from ingest_services.settings import IngestSettings, load_settings
from ingest_services.upbit.markets import ticker_of

WINDOW_S = 300
DAGSTER_DATABASE = "dagster"
# Quick reactions: on one machine there is nobody whose load they would be.
SENSOR_INTERVAL_S = 2
SETTLE_S = 2

USUAL_PORTS = {
    "dagster": 3000,
    "code": 4266,
    "postgres": 5432,
    "simulator": 8765,
    "broker": 9092,
    "broker_next": 9094,
    "producer": 9101,
    "producer_next": 9103,
    "consumer": 9102,
    "consumer_next": 9104,
}

# Ctrl-C to nothing left takes 10 s at most: what the children may use of it, and what Postgres gets then.
STOP_CHILDREN_WITHIN_S = 8.0
STOP_POSTGRES_WITHIN_S = 1.5
START_TIMEOUT_S = 60.0
HISTORY_TIMEOUT_S = 60.0
LOOK_EVERY_S = 1.0
# Of a window: no move to a fresh broker outside.
QUIET_FROM_S = 20.0
QUIET_TO_S = 200.0
_TICK_S = 0.1


@dataclass(frozen=True)
class Options:
    """What a person may choose.

    Attributes:
        live: The real exchange instead of the simulator.
        history_minutes: Back-dated books that the simulator plays into an empty lake, minutes.
        rate: Simulated books per second and ticker.
        broker_limit_mib: Memory of the broker after which the stack moves on to a fresh one, MiB.
        any_ports: Take any free ports and not the usual ones.
    """

    live: bool = False
    history_minutes: int = 30
    rate: float = 2.0
    broker_limit_mib: int = 512
    any_ports: bool = False


class StopRequested(Exception):  # noqa: N818 - a wish, not an error
    """SIGINT or SIGTERM came."""


class Stack:
    """One running platform on one state folder.

    Args:
        state: The folder; `run` holds it.
        options: What a person chose.
        view: Told what happens, and shown the status about once a second.
    """

    def __init__(
        self,
        state: StateFolder,
        options: Options,
        view: View,
    ) -> None:
        self.state = state
        self.options = options
        self.ports: dict[str, int] = {}
        self.ready_at: float | None = None
        self._say = view.say
        self._show = view.show
        self._stop = threading.Event()
        self._generation = 1
        self._children: dict[str, Child] = {}
        self._errand: Child | None = None
        self._retiring: Child | None = None
        self._postgres: EmbeddedPostgres | None = None
        self._observer: Observer | None = None
        self._settings: dict[str, str] = {}
        self._looked = 0.0
        self._measured = 0.0
        self._broker_mib = 0.0
        self._url: str | None = None
        self._history_books: int | None = None

    @property
    def source(self) -> str:
        """Whose data it is, as `lake.json` says it."""
        return "upbit" if self.options.live else "simulator"

    @property
    def url(self) -> str:
        """Where the Dagster UI is."""
        return f"http://{LOOPBACK}:{self.ports['dagster']}"

    @property
    def dsn(self) -> str:
        """The warehouse, once it runs."""
        assert self._postgres is not None
        return self._postgres.dsn

    def run(self, until: Callable[[Stack], bool]) -> None:
        """Start everything, look after it until the condition holds or a signal comes, stop everything.

        Args:
            until: Asked about ten times a second once everything is up.

        Raises:
            UserError: If the folder is in use, something does not start, or something vital dies. Nothing is
                left running then, either.
        """
        # Before anything is started: what a person got wrong in the environment or in .env.
        settings = load_settings(PipelineSettings)
        with self.state.held(), self._signals():
            if left := end_leftovers(self.state.pids):
                self._say(f"ended what a killed stack had left running: {', '.join(left)}")
            reaper = Reaper(self.state.pids, self.state.log("reaper"))
            try:
                self._start(settings)
                while not until(self):
                    self._tick()
                    if self._broker_is_full():
                        self._move_on()
            except StopRequested:
                self._say("stopping")
            finally:
                self._stop_all()
                reaper.dismiss()

    # Starting

    def _start(self, settings: PipelineSettings) -> None:
        state, options = self.state, self.options
        state.write_conf()
        sections = config.read_producers(state.producer_conf)
        partitions = config.partitions_of(sections)
        config.require_consumers(partitions, config.read_consumers(state.consumer_conf), state.consumer_conf)

        memory = state.remember()
        usual = dict.fromkeys(USUAL_PORTS, 0) if options.any_ports else USUAL_PORTS
        self.ports = memory.ports = ports.choose(usual, memory.ports)
        if not memory.partitions_start:
            minutes = 0 if options.live else options.history_minutes
            first = int(time.time() - minutes * 60) // WINDOW_S * WINDOW_S
            memory.partitions_start = f"{datetime.fromtimestamp(first, settings.zone):%Y-%m-%dT%H:%M%z}"
        state.write_memory(memory)
        fresh = not state.has_data()

        self._settings = {
            "SOURCE": self.source,
            "MARKET_TIME_ZONE": settings.market_time_zone,
            "DEPTH": str(settings.depth),
            **exchange_settings(None if options.live else self.ports["simulator"]),
            "RAW_URL": state.raw.as_uri(),
            "PARQUET_URL": state.parquet.as_uri(),
            "DAILY_URL": state.daily.as_uri(),
            "SPOOL_DIR": str(state.spool),
            "PRODUCER_CONF": str(state.producer_conf),
            "CONSUMER_CONF": str(state.consumer_conf),
            "PARTITIONS_START": memory.partitions_start,
            "SENSOR_INTERVAL_S": str(SENSOR_INTERVAL_S),
            "SETTLE_S": str(SETTLE_S),
            "DAGSTER_HOME": str(state.dagster),
        }
        self._start_broker()
        if not options.live:
            self._start_simulator(sections, options.history_minutes if fresh else 0)
        self._start_postgres()
        self._run_errand("migrate")
        self._observer = Observer(self.source, open_store(self._settings["RAW_URL"]), self.dsn)
        self._start_dagster()
        self._start_producer()
        # On an empty lake the history must be in Kafka first: a consumer that is quicker than the producer
        # would call minutes complete before their books arrive.
        if fresh and not options.live and options.history_minutes:
            self._wait_for(self._history_is_in_kafka, "the simulator's history in Kafka", HISTORY_TIMEOUT_S)
        self._start_consumer()
        self._wait_for(lambda: fetch_json(f"{self.url}/server_info") is not None, "the Dagster webserver")
        self._url = self.url
        state.announce(self.url)
        self.ready_at = time.monotonic()
        self._say(f"Dagster is at {self.url}, the logs are in {state.logs}")

    def _start_broker(self) -> None:
        port = self._port("broker")
        name = self._name("broker")
        self._settings["KAFKA_BOOTSTRAP"] = f"{LOOPBACK}:{port}"
        self._launch(
            name,
            broker.broker_command(port),
            environment=broker.broker_environment(),
            stop_after=frozenset({"consumer"}),
            stop_within_s=1.0,
            vital=True,
        )
        self._wait_for(lambda: ports.answers(port), "the broker")

    def _start_simulator(self, sections: list[config.ProducerSection], history_minutes: int) -> None:
        port = self.ports["simulator"]
        tickers = [ticker_of(market) for section in sections for market in section.markets]

        def command(minutes: int) -> list[str]:
            return [
                *_cryptostream("simulate"),
                *("--port", str(port)),
                *(("--tickers", ",".join(tickers)) if tickers else ()),
                *("--rate", str(self.options.rate)),
                *("--history-minutes", str(minutes)),
                # Another walk at every start: yesterday's over again would be no news.
                *("--seed", str(random.randrange(2**31))),  # noqa: S311 - no secret
            ]

        self._launch(
            "simulator",
            command(history_minutes),
            # The history is in the lake, where a second one would mix other prices into the same windows.
            again=lambda: command(0),
            stop_after=frozenset({"producer"}),
            stop_within_s=1.0,
        )

    def _start_postgres(self) -> None:
        state = self.state
        self._postgres = EmbeddedPostgres(state.postgres, self.ports["postgres"], state.log("postgres"))
        self._postgres.start()
        self._list_children()
        self._settings |= self._postgres.environment
        state.write_env(self._settings)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DAGSTER_DATABASE,))
            if found.fetchone() is None:
                connection.execute(f'CREATE DATABASE "{DAGSTER_DATABASE}"')

    def _start_dagster(self) -> None:
        code = self.ports["code"]
        workspace = self.state.dagster / "workspace.yaml"
        location = {"host": LOOPBACK, "port": code, "location_name": "cryptostream"}
        assert self._postgres is not None
        # JSON is YAML, too.
        workspace.write_text(json.dumps({"load_from": [{"grpc_server": location}]}), encoding="utf-8")
        home = json.dumps(instance(self._postgres), indent=2)
        (self.state.dagster / "dagster.yaml").write_text(
            f"# Written at every start.\n{home}\n", encoding="utf-8"
        )
        self._launch(
            "code",
            [
                # The runs of the one before, of a stack that was killed or of this one, ended with it.
                *(sys.executable, "-m", "cryptostream_dagster.code_server"),
                *("--host", LOOPBACK, "--port", str(code)),
                *("--module-name", "cryptostream_dagster.definitions", "--location-name", "cryptostream"),
                "--use-python-environment-entry-point",
            ],
            stop_after=frozenset({"daemon"}),
            whole_group=True,
        )
        self._wait_for(lambda: ports.answers(code), "the Dagster code server")
        self._launch(
            "daemon",
            [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)],
            whole_group=True,
        )
        self._launch(
            "webserver",
            [
                *(sys.executable, "-m", "dagster_webserver", "-h", LOOPBACK),
                *("-p", str(self.ports["dagster"]), "-w", str(workspace)),
            ],
            whole_group=True,
        )

    def _start_producer(self) -> None:
        if not self.options.live:
            health = f"http://{LOOPBACK}:{self.ports['simulator']}/simulator/health"
            self._wait_for(lambda: fetch_json(health) is not None, "the simulator")
        self._run_errand("topic")
        port = self._port("producer")
        self._launch(
            self._name("producer"),
            [*_cryptostream("produce", "--all"), "--metrics-port", str(port)],
            stop_within_s=3.0,
        )
        self._wait_for(lambda: ports.answers(port), "the producer")

    def _start_consumer(self) -> None:
        port = self._port("consumer")
        self._launch(
            self._name("consumer"),
            [*_cryptostream("consume", "--all"), "--metrics-port", str(port)],
            stop_after=frozenset({"producer"}),
            stop_within_s=6.0,
        )
        self._wait_for(lambda: ports.answers(port), "the consumer")

    def _history_is_in_kafka(self) -> bool:
        simulator = f"http://{LOOPBACK}:{self.ports['simulator']}/simulator"
        if self._history_books is None:
            health = fetch_json(f"{simulator}/health")
            if not health or not health["history_done"]:
                return False
            truth = fetch_json(f"{simulator}/truth?window_s={WINDOW_S}")
            self._history_books = int(truth["books_published"]) if truth else None
        metrics = fetch_metrics(self._port("producer"))
        acknowledged = total(metrics, "cryptostream_producer_acknowledged_total")
        heartbeats = total(metrics, "cryptostream_producer_heartbeats_total")
        if self._history_books is None or acknowledged is None or heartbeats is None:
            return False
        return acknowledged - heartbeats >= self._history_books

    # Moving on: the embedded broker keeps everything in memory, so now and then a fresh one takes over.

    def _broker_is_full(self) -> bool:
        now = time.monotonic()
        if now < self._measured + LOOK_EVERY_S or not is_quiet(time.time()):
            return False
        self._measured = now
        self._broker_mib = self._children[self._name("broker")].resident_bytes / 2**20
        return self._broker_mib > self.options.broker_limit_mib

    def _move_on(self) -> None:
        """Carry on with a fresh broker, which is a fresh topic and so a new chain in the lake.

        There is no gap: the new producer listens before the old one stops, and what both of them received is
        the same book, which counts once. There is no false claim either: the old consumer stops as soon as it
        has read what the old producer wrote, and this is not begun near the end of a window.
        """
        old = {kind: self._children[self._name(kind)] for kind in ("broker", "producer", "consumer")}
        old_consumer = self._port("consumer")
        self._say(f"the broker takes {self._broker_mib:,.0f} MiB: moving on to a fresh one")
        self._generation += 1
        self._start_broker()
        self._start_producer()
        self._wait_for(self._every_section_receives, "frames from the new producer")
        self._retire(old["producer"])
        lag = "cryptostream_consumer_lag_records"
        self._wait_for(lambda: total(fetch_metrics(old_consumer), lag) == 0, "the old broker's last records")
        self._retire(old["consumer"])
        self._start_consumer()
        self._retire(old["broker"])
        self.state.write_env(self._settings)
        self._say("moved on")

    def _every_section_receives(self) -> bool:
        frames = fetch_metrics(self._port("producer")).get("cryptostream_producer_frames_total", [])
        return bool(frames) and all(count > 0 for _, count in frames)

    def _retire(self, child: Child) -> None:
        # Not looked after any more, so that its end is no accident; in the list until it has ended.
        del self._children[child.program.name]
        self._retiring = child
        stop_in_order([child], time.monotonic() + STOP_CHILDREN_WITHIN_S)
        self._retiring = None
        self._list_children()

    # Running

    def _tick(self) -> None:
        if self._stop.wait(_TICK_S):
            raise StopRequested
        self._look_after_children()
        now = time.monotonic()
        if self._observer is not None and now >= self._looked + LOOK_EVERY_S:
            self._show(
                self._observer.look(
                    producers=[self._port("producer")],
                    consumers=[self._port("consumer")],
                    children=self._child_states(),
                    url=self._url,
                )
            )
            self._looked = time.monotonic()

    def _look_after_children(self) -> None:
        now = time.monotonic()
        for name, child in self._children.items():
            if child.restart_at is not None:
                if now >= child.restart_at:
                    child.restart()
                    self._list_children()
            elif not child.alive:
                if self.ready_at is None or child.program.vital:
                    raise UserError(self._obituary(child))
                delay = child.died()
                self._say(f"{self._obituary(child)}; starting {name} again in {delay:.0f} s")
        if self._postgres is not None and self._postgres.pid is None:
            raise UserError(f"Postgres ended unexpectedly; its log is {self._postgres.log_path}")

    def _child_states(self) -> dict[str, str]:
        states = {"postgres": "running"} if self._postgres is not None else {}
        for name, child in self._children.items():
            waits = child.restart_at is not None or not child.alive
            states[name] = "restarting" if waits else "running"
        return states

    def _obituary(self, child: Child) -> str:
        log = child.program.log
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        status = child.process.returncode
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        return f"{child.program.name} ended with {how}: {last.removeprefix('error: ')} (log: {log})"

    def _wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{what}: not there after {timeout_s:.0f} s; see the logs in {self.state.logs}"
                )
            self._tick()

    def _launch(
        self,
        name: str,
        command: list[str],
        *,
        environment: Mapping[str, str] | None = None,
        **stopping: Any,
    ) -> None:
        log = self.state.log(name.partition("-")[0])
        child = Child.start(Program(name, command, environment or self._environment(), log, **stopping))
        self._children[name] = child
        self._list_children()

    def _run_errand(self, command: str) -> None:
        program = Program(command, _cryptostream(command), self._environment(), self.state.log(command))
        self._errand = errand = Child.start(program)
        self._list_children()
        self._wait_for(lambda: not errand.alive, f"cryptostream {command}")
        self._errand = None
        if errand.process.returncode:
            raise UserError(self._obituary(errand))

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._settings}

    def _list_children(self) -> None:
        pids = {child.program.name: child.process.pid for child in self._all_children()}
        if self._postgres is not None and self._postgres.pid is not None:
            pids["postgres"] = self._postgres.pid
        write_list(self.state.pids, pids)

    def _all_children(self) -> list[Child]:
        others = [child for child in (self._errand, self._retiring) if child is not None]
        return [*self._children.values(), *others]

    def _name(self, kind: str) -> str:
        return kind if self._generation == 1 else f"{kind}-{self._generation}"

    def _port(self, kind: str) -> int:
        return self.ports[kind if self._generation % 2 else f"{kind}_next"]

    # Stopping

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def request(_number: int, _frame: FrameType | None) -> None:
            self._stop.set()

        previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop_all(self) -> None:
        if self._observer is not None:
            self._observer.close()
        killed = stop_in_order(self._all_children(), time.monotonic() + STOP_CHILDREN_WITHIN_S)
        if killed:
            self._say(f"had to kill {', '.join(killed)}")
        if self._postgres is not None and (pid := self._postgres.pid) is not None:
            # Postgres' "immediate shutdown" loses nothing: it replays its log at the next start.
            hurry = threading.Timer(STOP_POSTGRES_WITHIN_S, os.kill, (pid, signal.SIGQUIT))
            hurry.start()
            self._postgres.stop()
            hurry.cancel()
        self._children.clear()
        self._errand = self._postgres = None
        self.state.pids.unlink(missing_ok=True)


def exchange_settings(simulator_port: int | None) -> dict[str, str]:
    """Return the settings that say where the exchange is; None is the real one.

    The real one is said outright, too: an address that the environment or `.env` still has of a simulator
    would fill a lake that is labelled `upbit`.
    """
    if simulator_port is None:
        names = ("upbit_ws_url", "upbit_rest_url")
        return {name.upper(): IngestSettings.model_fields[name].default for name in names}
    return {
        "UPBIT_WS_URL": f"ws://{LOOPBACK}:{simulator_port}/websocket/v1",
        "UPBIT_REST_URL": f"http://{LOOPBACK}:{simulator_port}",
    }


def is_quiet(now_s: float) -> bool:
    """Return whether a moment, s since the epoch, is well away from the ends of its window."""
    return QUIET_FROM_S <= now_s % WINDOW_S <= QUIET_TO_S


def _cryptostream(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ingest_services", *arguments]


class PostgresServer(Protocol):
    """Where a server listens, and as whom to come in."""

    @property
    def host(self) -> str: ...  # noqa: D102
    @property
    def port(self) -> int: ...  # noqa: D102
    @property
    def user(self) -> str: ...  # noqa: D102
    @property
    def password(self) -> str: ...  # noqa: D102


def instance(postgres: PostgresServer, database: str = DAGSTER_DATABASE) -> dict[str, Any]:
    """Return the Dagster instance of a local stack, as dagster.yaml has it.

    Args:
        postgres: The server that holds its runs and events.
        database: Of that server.
    """
    return {
        "storage": {
            "postgres": {
                "postgres_db": {
                    "hostname": postgres.host,
                    "port": postgres.port,
                    "username": postgres.user,
                    "password": postgres.password,
                    "db_name": database,
                    # SQLAlchemy 2.1's own choice, psycopg 3, cannot send dagster-postgres' NOTIFY.
                    "scheme": "postgresql+psycopg2",
                }
            }
        },
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {"dequeue_interval_seconds": 1},
        },
        # As in the root's dagster.yaml: the live window always finds a free slot.
        "concurrency": {
            "runs": {
                "max_concurrent_runs": 4,
                "tag_concurrency_limits": [
                    {"key": "cryptostream/kind", "value": "reconcile", "limit": 1},
                    {"key": "cryptostream/kind", "value": "daily", "limit": 1},
                    {"key": "dagster/backfill", "limit": 1},
                ],
            }
        },
        "run_monitoring": {
            "enabled": True,
            "start_timeout_seconds": 120,
            "max_runtime_seconds": 3600,
            "poll_interval_seconds": 30,
        },
        "retention": {
            "schedule": {"purge_after_days": {"skipped": 1, "success": 7, "failure": 30}},
            "sensor": {"purge_after_days": {"skipped": 1, "success": 7, "failure": 30}},
        },
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
    }


def dev(root: Path | None, options: Options) -> None:
    """Run the platform until Ctrl-C; what `make dev` does.

    Args:
        root: State folder; None is the usual one, `.cryptostream/sim` or `.cryptostream/live`.
        options: What a person chose.

    Raises:
        UserError: As `Stack.run`.
    """
    state = StateFolder(root or STATES_FOLDER / ("live" if options.live else "sim"))
    console = Console()
    with open_view(console, load_settings(PipelineSettings).zone) as view:
        stack = Stack(state, options, view)
        view.say(f"{banner(stack.source)}; state in {state.root}")
        stack.run(until=lambda _: False)
    console.print("stopped; nothing is left running, the next start goes on from here")
