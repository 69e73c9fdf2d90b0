INSERT INTO seal_file (window_start, version, file_id)
SELECT %(start)s, %(version)s, file_id
FROM lake_file
WHERE minute >= %(start)s AND minute < %(end)s AND kind = 'book'
