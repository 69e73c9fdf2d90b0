DELETE FROM seal_file
WHERE (window_start, version, file_id) IN (
    SELECT window_start, version, file_id FROM seal_file WHERE window_start < %(until)s ORDER BY 1 LIMIT %(limit)s
)
