"""Loopback ports: the usual one if it is free, else the next; the same again at the next start."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from ingest_services.errors import UserError

LOOPBACK = "127.0.0.1"
TRIES = 200


def is_free(port: int) -> bool:
    """Return whether a server could listen on a loopback port now."""
    with socket.socket() as probe:
        # As servers do: a port with nothing but expired connections is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return not answers(port)


def answers(port: int) -> bool:
    """Return whether somebody listens on a loopback port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def choose(usual: Mapping[str, int], remembered: Mapping[str, int]) -> dict[str, int]:
    """Choose a port for each name, no two the same.

    Args:
        usual: Where to begin looking; 0 means any port.
        remembered: What was chosen last time; taken again if it is free.

    Raises:
        UserError: If there is no free port among the next `TRIES`.
    """
    chosen: dict[str, int] = {}
    for name, first in usual.items():
        candidates = [remembered[name]] if name in remembered else []
        candidates += range(first, first + TRIES) if first else (free_port() for _ in range(TRIES))
        for port in candidates:
            if port not in chosen.values() and is_free(port):
                chosen[name] = port
                break
        else:
            raise UserError(f"no free port for {name} on {LOOPBACK} from {first} to {first + TRIES - 1}")
    return chosen


def free_port() -> int:
    """Return a loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
