-- Heartbeats may come in any order: of a window the one that was received last stays. Ordered, so that two
-- partitions synced at once lock the rows that they share in the same order.
INSERT INTO subscription AS s (section, window_start, received_us, tickers)
SELECT n.section, n.window_start, n.received_us, ARRAY(SELECT jsonb_array_elements_text(n.tickers))
FROM unnest(%(sections)s::text[], %(windows)s::timestamptz[], %(received)s::bigint[], %(tickers)s::jsonb[])
    AS n (section, window_start, received_us, tickers)
ORDER BY 1, 2
ON CONFLICT (section, window_start) DO UPDATE
SET received_us = excluded.received_us, tickers = excluded.tickers
WHERE excluded.received_us >= s.received_us
