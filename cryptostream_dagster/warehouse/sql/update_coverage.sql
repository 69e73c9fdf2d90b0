UPDATE ohlc_5m_ticker AS o
SET coverage_ratio = f.coverage_ratio
FROM fresh AS f
WHERE o.ticker = f.ticker
AND o.event_time = f.event_time
AND o.event_date = f.event_date
AND o.coverage_ratio IS DISTINCT FROM f.coverage_ratio
