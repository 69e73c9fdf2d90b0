-- The window's candles as they should be.
CREATE TEMP TABLE fresh ON COMMIT DROP AS
SELECT
    s.ticker,
    s.market,
    %(start)s::timestamptz AS event_time,
    %(event_date)s::date AS event_date,
    s.open::numeric(20, 10) AS open_price,
    s.high::numeric(20, 10) AS high_price,
    s.low::numeric(20, 10) AS low_price,
    s.close::numeric(20, 10) AS close_price,
    p.close_price AS prev_close_price,
    (s.mid_ms / nullif(s.weight_ms, 0))::numeric(20, 10) AS twap_price,
    s.book_count,
    to_timestamp(s.first_ms / 1000.0) AS first_book_at,
    to_timestamp(s.last_ms / 1000.0) AS last_book_at,
    (s.spread_ms / nullif(s.weight_ms, 0))::numeric(12, 6) AS mean_spread_bps,
    v.coverage_ratio,
    %(version)s::integer AS version,
    %(now)s::timestamptz AS built_at,
    s.weight_ms AS quoted_ms
FROM stage AS s
LEFT JOIN ohlc_5m_ticker AS p ON p.ticker = s.ticker AND p.event_time = %(previous_start)s
LEFT JOIN coverage_5m AS v ON v.ticker = s.ticker AND v.window_start = %(start)s
WHERE s.book_count > 0
