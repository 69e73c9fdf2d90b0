-- The head of a query over `book`, the Parquet rows of a window in their order: each row as `weighed`, judged, with
-- the time for which it was in force.
--
-- A book is an event if its stamp lies in the window. The newest book from before it (a snapshot of a book that
-- had not moved) is none, but prevails from the window's start on. Each state prevails until the next, and a
-- one-sided or crossed book prevails with no mid.
--
-- A book of grouped prices (`level` > 0) tells no best ask and no best bid: it is left out, and its market's other
-- books stand.
--
-- A price comes back from its double through the shortest text that reads as that double: the exchange's own
-- digits.
WITH priced AS (
    SELECT
        *,
        TRY_CAST(ask_price1::VARCHAR AS DECIMAL(20, 10)) AS ask,
        TRY_CAST(bid_price1::VARCHAR AS DECIMAL(20, 10)) AS bid
    FROM (SELECT *, epoch_ms(exchange_time) AS tms FROM book)
    WHERE epoch_ms(exchange_time) < $end_ms AND "level" = 0
),
judged AS (
    SELECT
        ticker,
        market,
        tms,
        row_number,
        ask,
        bid,
        tms >= $start_ms AS is_event,
        coalesce(ask > 0 AND bid > 0, false) AS two_sided,
        two_sided AND bid > ask AS crossed,
        two_sided AND NOT crossed AS usable,
        CASE WHEN usable THEN (ask + bid) * 0.5 END AS mid,
        CASE WHEN usable THEN ((ask - bid)::DOUBLE / mid::DOUBLE * 10000)::DECIMAL(28, 9) END AS spread_bps{measures}
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
