-- Windows that have a row for every ticker with books: their newest version, and when they were written last.
SELECT t.event_time, max(t.version), max(t.built_at)
FROM {table} AS t
WHERE t.event_time >= %(first)s AND t.event_time <= %(last)s
GROUP BY t.event_time
HAVING count(*) = (
    SELECT count(*) FROM coverage_5m AS v WHERE v.window_start = t.event_time AND v.book_count > 0
)
