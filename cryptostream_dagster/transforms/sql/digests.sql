-- Of which seal each file says that it was built from.
SELECT file_name, decode(value)
FROM parquet_kv_metadata($files)
WHERE decode(key) = 'cryptostream.digest'
