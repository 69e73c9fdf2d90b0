-- One row per ticker with a book in [start_ms, end_ms), from `book`: the Parquet rows in their order.
--
-- A book is an event if its stamp lies in the window. The newest book from before it (a snapshot of a book that
-- had not moved) is none, but prevails from the window's start on. Each state prevails until the next; the
-- means weigh mids by the time that they prevailed, and a one-sided or crossed book prevails with no mid.
--
-- Sums are of decimals and therefore exact, in whatever order the threads add; the one division comes later,
-- in Postgres. A price comes back from its double through the shortest text that reads as that double: the
-- exchange's own digits.
WITH priced AS (
    SELECT
        *,
        TRY_CAST(ask_price1::VARCHAR AS DECIMAL(20, 10)) AS ask,
        TRY_CAST(bid_price1::VARCHAR AS DECIMAL(20, 10)) AS bid
    FROM (SELECT *, epoch_ms(exchange_time) AS tms FROM book)
    WHERE epoch_ms(exchange_time) < $end_ms
),
judged AS (
    SELECT
        ticker,
        market,
        tms,
        row_number,
        tms >= $start_ms AS is_event,
        coalesce(ask > 0 AND bid > 0, false) AS two_sided,
        two_sided AND bid > ask AS crossed,
        two_sided AND NOT crossed AS usable,
        CASE WHEN usable THEN (ask + bid) * 0.5 END AS mid,
        CASE WHEN usable THEN ((ask - bid)::DOUBLE / mid::DOUBLE * 10000)::DECIMAL(28, 9) END AS spread_bps
    FROM priced
),
prevailing AS (
    SELECT
        *,
        -- Of the books from before the window only the last one is ever in force inside it.
        greatest(tms, $start_ms) AS from_ms,
        coalesce(lead(tms) OVER in_order, $end_ms) AS until_ms
    FROM judged
    WINDOW in_order AS (PARTITION BY ticker ORDER BY row_number)
),
weighed AS (
    SELECT *, CASE WHEN usable THEN greatest(until_ms - from_ms, 0) ELSE 0 END::INTEGER AS weight_ms
    FROM prevailing
)
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
