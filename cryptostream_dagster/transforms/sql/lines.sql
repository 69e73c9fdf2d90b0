-- Every line of some objects, typed, in their order, and why it does not fit the schema (`reason`, else NULL).
-- What is wrong inside the units is seen by whoever lays them out.
--
-- Both of the exchange's formats are read, as the frame reader does it: with `cd` all of it is SIMPLE, without it
-- DEFAULT. A field of another type is NULL here. A key that occurs twice is read as its first, by the consumer, which
-- chose the object, as its last. So a row must be of its object's market, and a REALTIME one of the window; a
-- snapshot may have any stamp that is one.
WITH read AS (
    SELECT
        market,
        line,
        TRY(json_transform(line, '{{
            "partition": "INTEGER",
            "offset": "BIGINT",
            "received_us": "BIGINT",
            "connection": "VARCHAR",
            "book": {{
                "cd": "VARCHAR", "code": "VARCHAR",
                "tms": "BIGINT", "timestamp": "BIGINT",
                "st": "VARCHAR", "stream_type": "VARCHAR",
                "lv": "DOUBLE", "level": "DOUBLE",
                "tas": "DOUBLE", "total_ask_size": "DOUBLE",
                "tbs": "DOUBLE", "total_bid_size": "DOUBLE",
                "obu": [{{"ap": "DOUBLE", "bp": "DOUBLE", "as": "DOUBLE", "bs": "DOUBLE"}}],
                "orderbook_units": [
                    {{"ask_price": "DOUBLE", "bid_price": "DOUBLE", "ask_size": "DOUBLE", "bid_size": "DOUBLE"}}
                ]
            }}
        }}')) AS raw
    FROM line
),
named AS (
    SELECT
        market,
        line,
        raw IS NOT NULL AS is_json,
        -- Of a line that is no JSON its beginning, which is the consumer's, still tells them.
        CASE WHEN is_json THEN raw."partition" ELSE TRY_CAST(regexp_extract(line, '{envelope}', 1) AS INTEGER) END
            AS "partition",
        CASE WHEN is_json THEN raw."offset" ELSE TRY_CAST(regexp_extract(line, '{envelope}', 2) AS BIGINT) END
            AS "offset",
        raw.received_us AS received_us,
        raw.connection AS connection,
        raw.book.cd IS NOT NULL AS simple,
        CASE WHEN simple THEN raw.book.cd ELSE raw.book.code END AS said_market,
        CASE WHEN simple THEN raw.book.tms ELSE raw.book."timestamp" END AS stamp,
        -- The rule for stamps is stated in ingest_services.upbit.frames.
        CASE WHEN stamp >= 100000000000000 THEN stamp // 1000 ELSE stamp END AS tms,
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
    FROM read
)
SELECT
    "partition",
    "offset",
    received_us,
    connection,
    tms,
    stream_type,
    coalesce("level", 0) AS "level",
    total_ask_size,
    total_bid_size,
    units,
    CASE
        WHEN NOT is_json THEN 'not JSON'
        WHEN "partition" IS NULL OR "offset" IS NULL OR received_us IS NULL OR connection IS NULL
            THEN 'not a line of a raw object'
        WHEN said_market IS NULL THEN 'market missing or of another type'
        WHEN said_market <> market THEN 'another market than its object'
        WHEN tms IS NULL THEN 'stamp missing or of another type'
        WHEN stream_type IS NULL OR stream_type NOT IN ('REALTIME', 'SNAPSHOT') THEN 'unknown stream type'
        WHEN stream_type = 'REALTIME' AND (tms < {start_ms} OR tms >= {end_ms}) THEN 'stamp outside the window'
        WHEN stream_type = 'SNAPSHOT' AND tms NOT BETWEEN 1000000000000 AND 9999999999999 THEN 'impossible stamp'
        WHEN units IS NULL THEN 'units missing or of another type'
        -- Looked at again only where it matters: is a NULL something else in the line?
        WHEN "level" IS NULL AND json_type(line, CASE WHEN simple THEN '$.book.lv' ELSE '$.book.level' END) <> 'NULL'
            OR total_ask_size IS NULL
            AND json_type(line, CASE WHEN simple THEN '$.book.tas' ELSE '$.book.total_ask_size' END) <> 'NULL'
            OR total_bid_size IS NULL
            AND json_type(line, CASE WHEN simple THEN '$.book.tbs' ELSE '$.book.total_bid_size' END) <> 'NULL'
            THEN 'number of another type'
        WHEN NOT isfinite(coalesce("level", 0) + coalesce(total_ask_size, 0) + coalesce(total_bid_size, 0))
            THEN 'number beyond a double'
    END AS reason
FROM named
