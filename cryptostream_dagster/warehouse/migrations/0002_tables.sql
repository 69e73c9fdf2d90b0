-- What people read: candles, their history, coverage; and the list of Parquet objects.

CREATE TABLE parquet_file (
    window_start timestamptz NOT NULL,
    ticker       text NOT NULL,
    path         text NOT NULL,
    bytes        bigint NOT NULL,
    sealed_rows  bigint NOT NULL,     -- = rows + duplicates + rejected
    rows         bigint NOT NULL,
    duplicates   bigint NOT NULL,
    rejected     bigint NOT NULL,
    PRIMARY KEY (window_start, ticker)
);
COMMENT ON TABLE parquet_file IS 'One row per ticker and window with sealed rows; path is empty if no row fitted the schema';

CREATE TABLE ohlc_5m_ticker (
    ticker           text NOT NULL,
    market           text NOT NULL,
    event_time       timestamptz NOT NULL,
    event_date       date NOT NULL,
    open_price       numeric(20,10) NOT NULL,
    high_price       numeric(20,10) NOT NULL,
    low_price        numeric(20,10) NOT NULL,
    close_price      numeric(20,10) NOT NULL,
    prev_close_price numeric(20,10),
    twap_price       numeric(20,10),
    book_count       bigint NOT NULL,
    first_book_at    timestamptz NOT NULL,
    last_book_at     timestamptz NOT NULL,
    mean_spread_bps  numeric(12,6),
    coverage_ratio   double precision,
    version          integer NOT NULL,
    built_at         timestamptz NOT NULL,
    PRIMARY KEY (ticker, event_time, event_date)
) PARTITION BY RANGE (event_date);
CREATE INDEX ohlc_5m_ticker_time ON ohlc_5m_ticker (event_time);
COMMENT ON TABLE ohlc_5m_ticker IS 'Candles of the mid of best ask and best bid: quotes, not trades, so there is no volume';
COMMENT ON COLUMN ohlc_5m_ticker.event_time IS 'Start of the window [start, start + 5 min) in exchange time';
COMMENT ON COLUMN ohlc_5m_ticker.event_date IS 'Market-zone date of event_time';
COMMENT ON COLUMN ohlc_5m_ticker.book_count IS 'Books in the window that are two-sided and not crossed';
COMMENT ON COLUMN ohlc_5m_ticker.coverage_ratio IS 'Share of the window in which every change was received; NULL: unknown';
COMMENT ON COLUMN ohlc_5m_ticker.version IS 'Version of the seal with which the candle took its present values';

-- A candle as it was known from valid_from to valid_to.
CREATE TABLE ohlc_5m_history (
    LIKE ohlc_5m_ticker,
    valid_from timestamptz NOT NULL,
    valid_to   timestamptz NOT NULL
);
CREATE INDEX ohlc_5m_history_key ON ohlc_5m_history (ticker, event_time, valid_to);
COMMENT ON TABLE ohlc_5m_history IS 'Superseded candles: with ohlc_5m_ticker (valid from built_at) it says what was known when';

CREATE TABLE coverage_5m (
    ticker          text NOT NULL,
    window_start    timestamptz NOT NULL,
    source          text NOT NULL,
    subscribed      boolean NOT NULL,
    coverage_ratio  double precision,
    book_count      bigint NOT NULL DEFAULT 0,
    one_sided_count bigint NOT NULL DEFAULT 0,
    crossed_count   bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (ticker, window_start)
) PARTITION BY RANGE (window_start);
CREATE INDEX coverage_5m_window ON coverage_5m (window_start);
COMMENT ON TABLE coverage_5m IS 'One row per window and ticker that was subscribed to or has books; book_count > 0 means there is a candle';

-- Which tickers there are candles of, and from when to when.
CREATE TABLE ticker (
    ticker           text PRIMARY KEY,
    market           text NOT NULL,
    first_event_time timestamptz NOT NULL,
    last_event_time  timestamptz NOT NULL
);
