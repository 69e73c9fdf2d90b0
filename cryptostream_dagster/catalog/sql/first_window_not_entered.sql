-- The first window that ended after the lake began, or the one after those that were entered already.
SELECT greatest(
    (SELECT date_bin('5 minutes', min(since), 'epoch'::timestamptz) FROM lake_chain),
    (SELECT value::timestamptz FROM meta WHERE key = 'windows_entered_until')
)
