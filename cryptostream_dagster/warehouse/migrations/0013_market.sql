-- The exchange's markets as its REST API told them, poll by poll. One that is delisted stays: whoever asks later
-- which markets there were must not be told of the survivors alone.
CREATE TABLE market (
    market       text PRIMARY KEY,
    ticker       text NOT NULL,
    korean_name  text NOT NULL,
    english_name text NOT NULL,
    warning      boolean NOT NULL,
    cautions     text[] NOT NULL,
    tick_size    numeric(20,10),
    listed       boolean NOT NULL,
    first_seen   timestamptz NOT NULL,
    last_seen    timestamptz NOT NULL,
    valid_from   timestamptz NOT NULL
);
COMMENT ON TABLE market IS 'Every market that the exchange ever told of, with what it said last';
COMMENT ON COLUMN market.warning IS 'The exchange calls the market one that needs care';
COMMENT ON COLUMN market.cautions IS 'The exchange''s cautions that are in force, by its own names, in order';
COMMENT ON COLUMN market.tick_size IS 'Step between prices, at the price of that time';
COMMENT ON COLUMN market.listed IS 'Whether the last poll named it';
COMMENT ON COLUMN market.last_seen IS 'The last poll that named it';
COMMENT ON COLUMN market.valid_from IS 'The poll that told first what the row says; the change itself was after the poll before';

CREATE TABLE market_history (
    LIKE market,
    valid_to timestamptz NOT NULL
);
CREATE INDEX market_history_key ON market_history (market, valid_to);
COMMENT ON TABLE market_history IS 'What was said of a market before, with the polls [valid_from, valid_to) in between which it was';

CREATE VIEW market_known AS
SELECT
    market, ticker, korean_name, english_name, warning, cautions, tick_size, listed, first_seen, last_seen,
    valid_from, NULL::timestamptz AS valid_to
FROM market
UNION ALL
SELECT
    market, ticker, korean_name, english_name, warning, cautions, tick_size, listed, first_seen, last_seen,
    valid_from, valid_to
FROM market_history;
COMMENT ON VIEW market_known IS 'What was known of each market in [valid_from, valid_to); valid_to is NULL of what still is';
