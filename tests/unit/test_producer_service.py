"""How a producer process ends: status 0 only if everything that was received is in Kafka or in the spool."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.service import ProducerService


@pytest.mark.parametrize("stuck", [False, True])
def test_a_publisher_that_does_not_end_is_no_clean_end(stuck: bool) -> None:
    publisher = SimpleNamespace(
        stop=lambda: None, join=lambda timeout_s: None, is_alive=lambda: stuck, drained=not stuck
    )
    service = ProducerService.__new__(ProducerService)
    service._started = True
    service._monitor = None
    service._topics = SimpleNamespace(stop=lambda: None)  # type: ignore[assignment]
    service._running = [
        SimpleNamespace(  # type: ignore[list-item]
            section=SimpleNamespace(name="s"),
            stats=SectionStats("s"),
            publisher=publisher,
            stop_feeds=lambda: None,
            join_feeds=lambda deadline_s: None,
        )
    ]
    assert service.stop() is not stuck
