-- The lines that say again what another line says: the same market, stamp, grouping and every number. The first
-- in the order stays. Few stamps occur twice, so only those go through the comparison of all columns.
CREATE OR REPLACE TEMP TABLE repeat AS
WITH twice AS (
    SELECT market, tms FROM line WHERE fits GROUP BY market, tms HAVING count(*) > 1
),
ranked AS (
    SELECT
        rowid AS line_id,
        ticker,
        row_number() OVER (
            PARTITION BY market, tms, "level", total_ask_size, total_bid_size, {level_names}
            ORDER BY received_us, chain, "partition", "offset"
        ) AS occurrence
    FROM line
    WHERE fits AND (market, tms) IN (FROM twice)
)
SELECT line_id, ticker FROM ranked WHERE occurrence > 1
