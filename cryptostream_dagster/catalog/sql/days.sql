-- The days of [since, until): which windows they should have, what was built of them, what was written from it.
--
-- A day should have the windows that ended since the lake began, and older ones that the lake has objects of; but
-- not those that never were built and cannot be any more (frozen). The digest is over the versions of its windows'
-- Parquet, in order of time, and how often it was written again from the same version.
WITH expected AS (
    SELECT window_start FROM lake_window WHERE window_start >= %(since)s AND window_start < %(until)s
    UNION
    SELECT generate_series(
        greatest(%(since)s, (SELECT date_bin('5 minutes', min(since), 'epoch'::timestamptz) FROM lake_chain)),
        %(until)s - interval '5 minutes',
        '5 minutes'
    )
    WHERE EXISTS (SELECT FROM lake_chain)
),
day_built AS (
    SELECT
        (e.window_start AT TIME ZONE %(zone)s)::date AS day,
        count(*) AS windows,
        count(*) FILTER (WHERE b.digest IS NULL) AS missing,
        (array_agg(e.window_start ORDER BY e.window_start) FILTER (WHERE b.digest IS NULL))[1:%(shown)s] AS first_missing,
        encode(
            sha256(
                convert_to(
                    string_agg(
                        extract(epoch FROM e.window_start)::bigint || ' ' || b.version || ' ' || b.digest
                        || coalesce(' ' || r.times, ''),
                        E'\n'
                        ORDER BY e.window_start
                    ),
                    'UTF8'
                )
            ),
            'hex'
        ) AS digest,
        max(greatest(b.built_at, r.rewritten_at)) AS last_built_at
    FROM expected AS e
    LEFT JOIN built AS b ON b.window_start = e.window_start AND b.asset = %(asset)s
    LEFT JOIN lake_window AS w ON w.window_start = e.window_start
    LEFT JOIN parquet_rewritten AS r ON r.window_start = e.window_start
    WHERE b.digest IS NOT NULL OR (
        w.gone_path IS NULL
        AND (%(frozen_until)s::timestamptz IS NULL OR e.window_start + interval '5 minutes' > %(frozen_until)s)
    )
    GROUP BY 1
)
SELECT
    v.day,
    v.windows,
    v.missing,
    coalesce(v.first_missing, '{}'),
    coalesce(v.digest, ''),
    v.last_built_at,
    d.digest,
    CASE WHEN d.requested_digest = v.digest THEN d.requests ELSE 0 END,
    d.requested_at
FROM day_built AS v
LEFT JOIN daily AS d USING (day)
ORDER BY v.day
