INSERT INTO seal_file (window_start, version, file_id)
SELECT %(start)s, %(version)s, file_id FROM unnest(%(files)s::bigint[]) AS f (file_id)
