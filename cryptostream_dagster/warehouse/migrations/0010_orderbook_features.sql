-- What the books of a window say beyond its candle. Definitions: docs/features.md.
CREATE TABLE orderbook_features_5m (
    ticker              text NOT NULL,
    market              text NOT NULL,
    event_time          timestamptz NOT NULL,
    event_date          date NOT NULL,
    mean_spread_bps     numeric(12,6),
    ask_depth_10bps     numeric(28,10),
    bid_depth_10bps     numeric(28,10),
    ask_depth_50bps     numeric(28,10),
    bid_depth_50bps     numeric(28,10),
    imbalance           numeric(10,9),
    close_microprice    numeric(20,10),
    realized_volatility numeric(18,12),
    return_count        integer NOT NULL,
    book_count          bigint NOT NULL,
    version             integer NOT NULL,
    built_at            timestamptz NOT NULL,
    PRIMARY KEY (ticker, event_time, event_date)
) PARTITION BY RANGE (event_date);
CREATE INDEX orderbook_features_5m_time ON orderbook_features_5m (event_time);
COMMENT ON TABLE orderbook_features_5m IS 'Book features, one row for each candle of ohlc_5m_ticker; docs/features.md defines them';
COMMENT ON COLUMN orderbook_features_5m.event_time IS 'Start of the window [start, start + 5 min) in exchange time';
COMMENT ON COLUMN orderbook_features_5m.mean_spread_bps IS 'Time-weighted: that of the candle';
COMMENT ON COLUMN orderbook_features_5m.ask_depth_10bps IS 'Time-weighted sum of the asks'' sizes within 10 bps of the mid, base currency; NULL if a book ended sooner';
COMMENT ON COLUMN orderbook_features_5m.imbalance IS 'Time-weighted (bid size - ask size) / (bid size + ask size) of the best level';
COMMENT ON COLUMN orderbook_features_5m.close_microprice IS 'Best prices of the last book, each weighed by the size of the other side';
COMMENT ON COLUMN orderbook_features_5m.realized_volatility IS 'Of the mid, sampled every second; of the window, not annualised';
COMMENT ON COLUMN orderbook_features_5m.return_count IS 'Returns in realized_volatility: 300 if a mid prevailed from the start';
COMMENT ON COLUMN orderbook_features_5m.version IS 'Version of the seal with which the row took its present values';
