-- What each producer section is subscribed to: its newest heartbeat of every window in which it was heard. A
-- section that falls silent is still expected, and its tickers' coverage is 0 (docs/windows.md).
CREATE TABLE subscription (
    section      text NOT NULL,
    window_start timestamptz NOT NULL,
    received_us  bigint NOT NULL,
    tickers      text[] NOT NULL,
    PRIMARY KEY (section, window_start)
);
