CREATE TEMP TABLE stage (
    ticker text, market text, open numeric, high numeric, low numeric, close numeric, book_count bigint,
    first_ms bigint, last_ms bigint, mid_ms numeric, spread_ms numeric, weight_ms bigint,
    one_sided_count bigint, crossed_count bigint
) ON COMMIT DROP
