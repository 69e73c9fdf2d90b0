-- Lines of raw objects that do not fit the schema of the Parquet: counted for every ticker, and told one by one.
ALTER TABLE parquet_file RENAME COLUMN rejected TO quarantined;
COMMENT ON COLUMN parquet_file.sealed_rows IS 'Lines in the raw objects = rows + duplicates + quarantined';

CREATE TABLE quarantined_line (
    window_start timestamptz NOT NULL,
    path         text NOT NULL,       -- of the raw object, under RAW_URL
    line         bigint NOT NULL,     -- its number in the object, from 1
    ticker       text NOT NULL,
    partition    integer,             -- NULL, as offset, where the line does not even tell that
    "offset"     bigint,
    reason       text NOT NULL,
    PRIMARY KEY (window_start, path, line)
);
COMMENT ON TABLE quarantined_line IS 'Lines of sealed raw objects that are not in the Parquet, the first 20 of each window and ticker; parquet_file.quarantined counts all. Their bytes stay in the raw object';
