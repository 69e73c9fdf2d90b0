"""The producer: from the exchange's socket to acknowledged Kafka records, with nothing lost silently.

    feed (a thread) ──▶ inbox ──▶ publisher (a thread) ──▶ outbox ──▶ live lane ───▶ Kafka
                                        │ coverage             └────▶ spool ──▶ backlog lane ──▶ Kafka

Belongs here: connections and their supervision, publishing, the spool, coverage. Does not belong here: what a
frame means (`upbit/`), what a record looks like (`record.py`), who collects what (`config.py`).
"""
