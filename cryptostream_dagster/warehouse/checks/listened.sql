-- On the mean over the subscribed tickers every change of their books was received during enough of the window.
-- NULL, unknown, is no violation: nobody could have listened better.
WITH covered AS (
    SELECT ticker, coverage_ratio
    FROM coverage_5m
    WHERE window_start = %(start)s AND subscribed AND coverage_ratio IS NOT NULL
),
judged AS (
    SELECT
        -- Nobody may be subscribed to anything and it is still known that nobody listened.
        EXISTS (SELECT FROM lake_file WHERE kind = 'heartbeat' AND minute < %(end)s) AS known,
        coalesce(avg(coverage_ratio), 0) AS mean,
        count(*) FILTER (WHERE coverage_ratio < %(enough)s) AS short
    FROM covered
),
worst AS (
    SELECT string_agg(format('%%s %%s', ticker, floor(coverage_ratio * 1000) / 1000), ', ') AS tickers
    FROM (
        SELECT * FROM covered WHERE coverage_ratio < %(enough)s
        ORDER BY coverage_ratio, ticker COLLATE "C" LIMIT 10
    ) AS w
)
SELECT
    CASE WHEN known AND mean < %(enough)s THEN greatest(short, 1) ELSE 0 END AS violations,
    CASE
        WHEN NOT known THEN 'unknown: no heartbeat is that old'
        WHEN mean < %(enough)s THEN format(
            'mean coverage %%s; worst: %%s', floor(mean * 1000) / 1000, coalesce(tickers, 'nobody was subscribed')
        )
    END AS detail
FROM judged, worst
