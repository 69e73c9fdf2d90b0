-- Rows of tickers that turned out not to have been subscribed to (a carried subscription that a late heartbeat
-- put right). One with books has its candle; the candle step counts it.
DELETE FROM coverage_5m
WHERE window_start = %(start)s
AND NOT ticker = ANY(%(tickers)s::text[])
AND book_count + one_sided_count + crossed_count = 0
