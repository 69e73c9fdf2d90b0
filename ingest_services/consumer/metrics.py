"""What a consumer process exports."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

COMMITTED = Counter(
    "cryptostream_consumer_records_committed",
    "Records committed to the raw lake, by section and kind",
    ["section", "kind"],
)
COMMITS = Counter("cryptostream_consumer_commits", "Commits", ["section"])
FENCED = Counter("cryptostream_consumer_fenced", "Commits that another writer had made first", ["section"])
MISSING = Counter("cryptostream_consumer_offsets_missing", "Offsets that never came", ["section"])
RETRIES = Counter("cryptostream_consumer_store_retries", "Store failures that were tried again", ["what"])
LAG = Gauge(
    "cryptostream_consumer_lag_records", "Records between position and log end", ["topic", "partition"]
)
BUFFERED = Gauge(
    "cryptostream_consumer_buffered_bytes", "Lines read and not yet committed", ["topic", "partition"]
)
THROUGH = Gauge(
    "cryptostream_consumer_minutes_through_seconds",
    "End of the last minute claimed, s since the epoch",
    ["topic", "partition"],
)
COMMIT_SECONDS = Histogram(
    "cryptostream_consumer_commit_seconds",
    "From cut to durable commit",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
