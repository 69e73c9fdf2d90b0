-- A silent section is expected for seven days (EXPECTED_FOR in coverage.py); what is older nobody asks for.
DELETE FROM subscription
WHERE (section, window_start) IN (
    SELECT section, window_start
    FROM subscription
    WHERE window_start < %(until)s::timestamptz - interval '7 days'
    LIMIT %(limit)s
)
