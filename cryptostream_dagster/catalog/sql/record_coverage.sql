INSERT INTO coverage_5m AS c (ticker, window_start, source, subscribed, coverage_ratio)
SELECT n.ticker, %(start)s, %(source)s, n.subscribed, n.coverage_ratio
FROM unnest(%(tickers)s::text[], %(subscribed)s::boolean[], %(ratios)s::double precision[])
    AS n (ticker, subscribed, coverage_ratio)
ON CONFLICT (ticker, window_start) DO UPDATE
SET subscribed = excluded.subscribed, coverage_ratio = excluded.coverage_ratio
WHERE (c.subscribed, c.coverage_ratio) IS DISTINCT FROM (excluded.subscribed, excluded.coverage_ratio)
