-- One row per ticker with a book before the window's end, from `weighed` (weighed.sql). Sums are of decimals and
-- therefore exact, in whatever order the threads add; the one division comes later, in Postgres.
SELECT
    ticker,
    any_value(market) AS market,
    arg_min(mid, row_number) FILTER (WHERE is_event AND usable) AS open,
    max(mid) FILTER (WHERE is_event) AS high,
    min(mid) FILTER (WHERE is_event) AS low,
    arg_max(mid, row_number) FILTER (WHERE is_event AND usable) AS close,
    count(*) FILTER (WHERE is_event AND usable) AS book_count,
    min(tms) FILTER (WHERE is_event AND usable) AS first_ms,
    max(tms) FILTER (WHERE is_event AND usable) AS last_ms,
    coalesce(sum(mid * weight_ms), 0) AS mid_ms,
    coalesce(sum(spread_bps * weight_ms), 0) AS spread_ms,
    coalesce(sum(weight_ms), 0)::BIGINT AS weight_ms,
    count(*) FILTER (WHERE is_event AND NOT two_sided) AS one_sided_count,
    count(*) FILTER (WHERE is_event AND crossed) AS crossed_count
FROM weighed
GROUP BY ticker
ORDER BY ticker
