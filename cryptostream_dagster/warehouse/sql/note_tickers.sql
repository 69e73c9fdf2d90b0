INSERT INTO ticker AS t (ticker, market, first_event_time, last_event_time)
SELECT ticker, market, event_time, event_time FROM fresh ORDER BY ticker
ON CONFLICT (ticker) DO UPDATE
SET
    first_event_time = least(t.first_event_time, excluded.first_event_time),
    last_event_time = greatest(t.last_event_time, excluded.last_event_time)
WHERE excluded.first_event_time < t.first_event_time OR excluded.last_event_time > t.last_event_time
