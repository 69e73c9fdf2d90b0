-- Every line of some objects as one flat row. `fits` is false for a line that is no book by our schema: not
-- JSON, a field of another type, a number beyond a double. Both of the exchange's formats are read.
--
-- A key that occurs twice is read as its first here, as its last by the consumer, which chose the object. So a row
-- must be of its object's ticker, and a REALTIME one of the window; a snapshot may have any stamp that is one.
CREATE OR REPLACE TEMP TABLE line AS
WITH read AS (
    SELECT
        object.ticker,
        object.chain,
        object.number AS object_number,
        raw."partition",
        raw."offset",
        raw.received_us,
        raw.connection,
        -- As the frame reader does: with `cd` all of it is SIMPLE, without it DEFAULT.
        raw.book.cd IS NOT NULL AS simple,
        CASE WHEN simple THEN raw.book.cd ELSE raw.book.code END AS market,
        CASE WHEN simple THEN raw.book.tms ELSE raw.book."timestamp" END AS stamp,
        CASE WHEN simple THEN raw.book.st ELSE raw.book.stream_type END AS stream_type,
        CASE WHEN simple THEN raw.book.lv ELSE raw.book."level" END AS "level",
        CASE WHEN simple THEN raw.book.tas ELSE raw.book.total_ask_size END AS total_ask_size,
        CASE WHEN simple THEN raw.book.tbs ELSE raw.book.total_bid_size END AS total_bid_size,
        CASE
            WHEN simple THEN raw.book.obu
            ELSE list_transform(
                raw.book.orderbook_units,
                lambda u: {{'ap': u.ask_price, 'bp': u.bid_price, 'as': u.ask_size, 'bs': u.bid_size}}
            )
        END AS units
    FROM read_json(
        $files,
        format = 'newline_delimited',
        ignore_errors = true,
        filename = true,
        columns = {{
            'partition': 'INTEGER',
            'offset': 'BIGINT',
            'received_us': 'BIGINT',
            'connection': 'VARCHAR',
            'book': 'STRUCT(
                cd VARCHAR, code VARCHAR, tms BIGINT, "timestamp" BIGINT, st VARCHAR, stream_type VARCHAR,
                lv DOUBLE, "level" DOUBLE, tas DOUBLE, total_ask_size DOUBLE, tbs DOUBLE, total_bid_size DOUBLE,
                obu STRUCT(ap DOUBLE, bp DOUBLE, "as" DOUBLE, bs DOUBLE)[],
                orderbook_units STRUCT(
                    ask_price DOUBLE, bid_price DOUBLE, ask_size DOUBLE, bid_size DOUBLE
                )[]
            )'
        }}
    ) AS raw
    JOIN object ON object.file = raw.filename
)
SELECT
    ticker,
    chain,
    object_number,
    "partition",
    "offset",
    received_us,
    connection,
    market,
    -- The rule for stamps is stated in ingest_services.upbit.frames.
    CASE WHEN stamp >= 100000000000000 THEN stamp // 1000 ELSE stamp END AS tms,
    stream_type,
    coalesce("level", 0) AS "level",
    total_ask_size,
    total_bid_size,
    {levels},
    coalesce(
        "partition" IS NOT NULL
        AND "offset" IS NOT NULL
        AND received_us IS NOT NULL
        AND connection IS NOT NULL
        AND market IN (ticker, 'KRW-' || ticker)
        AND CASE stream_type
            WHEN 'REALTIME' THEN tms >= $start_ms AND tms < $end_ms
            WHEN 'SNAPSHOT' THEN tms BETWEEN 1000000000000 AND 9999999999999
        END
        AND units IS NOT NULL
        AND isfinite(coalesce(total_ask_size, 0) + coalesce(total_bid_size, 0) + coalesce("level", 0))
        AND len(units) = list_count(sums)
        AND (len(units) = 0 OR isfinite(list_sum(sums))),
        false
    ) AS fits
FROM (SELECT *, list_transform(units, lambda u: u.ap + u.bp + u."as" + u.bs) AS sums FROM read)
