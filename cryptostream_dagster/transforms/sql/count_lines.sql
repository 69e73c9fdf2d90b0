-- Of each ticker: its lines, those that do not fit the schema, those that repeat another.
SELECT l.ticker, l.sealed_rows, l.rejected, coalesce(r.duplicates, 0)
FROM (
    SELECT ticker, count(*) AS sealed_rows, count(*) FILTER (WHERE NOT fits) AS rejected
    FROM line
    GROUP BY ticker
) AS l
LEFT JOIN (SELECT ticker, count(*) AS duplicates FROM repeat GROUP BY ticker) AS r ON r.ticker = l.ticker
