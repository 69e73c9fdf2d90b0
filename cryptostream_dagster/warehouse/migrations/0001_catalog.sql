-- The catalog: what the lake's commit chain says, indexed by window. Everything in it can be rebuilt from the
-- lake. The protocol is docs/windows.md.

CREATE TABLE meta (
    key   text PRIMARY KEY,
    value text NOT NULL
);
COMMENT ON TABLE meta IS 'Whose data this is: source and time zone of the lake';

CREATE TABLE lake_chain (
    chain       integer PRIMARY KEY,
    topic       text NOT NULL,
    topic_id    text NOT NULL,
    since       timestamptz NOT NULL,
    predecessor integer,
    reason      text NOT NULL
);

-- The cursor of one partition of one chain; moved in the transaction that inserts what lies before it.
CREATE TABLE lake_partition (
    chain           integer NOT NULL REFERENCES lake_chain,
    partition       integer NOT NULL,
    next_offset     bigint NOT NULL,
    end_offset      bigint,               -- where a closed chain ends; NULL: open
    minutes_through timestamptz,          -- of a claim whose commits are all in the catalog
    claimed_at      timestamptz,
    PRIMARY KEY (chain, partition)
);

CREATE TABLE lake_commit (
    chain        integer NOT NULL,
    partition    integer NOT NULL,
    base_offset  bigint NOT NULL,
    next_offset  bigint NOT NULL,
    books        bigint NOT NULL,
    heartbeats   bigint NOT NULL,
    quarantined  bigint NOT NULL,
    missing      bigint NOT NULL,
    committed_at timestamptz NOT NULL,
    PRIMARY KEY (chain, partition, base_offset),
    FOREIGN KEY (chain, partition) REFERENCES lake_partition
);

CREATE TABLE lake_file (
    file_id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain           integer NOT NULL,
    partition       integer NOT NULL,
    base_offset     bigint NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('book', 'heartbeat', 'quarantine')),
    path            text NOT NULL,
    ticker          text NOT NULL,
    minute          timestamptz NOT NULL,
    rows            bigint NOT NULL,
    bytes           bigint NOT NULL,
    crc32c          text NOT NULL,
    min_received_us bigint NOT NULL,
    max_received_us bigint NOT NULL
);
CREATE INDEX lake_file_minute ON lake_file (minute, kind);
CREATE INDEX lake_file_commit ON lake_file (chain, partition, base_offset);

CREATE SEQUENCE lake_revision;

-- What the catalog holds of a window, and what was built from it. A revision moves whenever an object joins or
-- leaves: `built` is behind exactly when they differ.
CREATE TABLE lake_window (
    window_start            timestamptz PRIMARY KEY,
    rows                    bigint NOT NULL DEFAULT 0,    -- books
    revision                bigint NOT NULL DEFAULT 0,    -- of books
    coverage_revision       bigint NOT NULL DEFAULT 0,    -- of heartbeats: changes no version
    first_change_at         timestamptz,                  -- of those not built yet
    last_change_at          timestamptz,
    built_revision          bigint,
    built_coverage_revision bigint,
    built_at                timestamptz,
    requested_revision      bigint,                       -- what the sensor asked for last,
    requests                integer NOT NULL DEFAULT 0,   -- how often at that revision,
    requested_at            timestamptz                   -- and when
);
CREATE INDEX lake_window_unbuilt ON lake_window (window_start)
    WHERE built_revision IS DISTINCT FROM revision
       OR built_coverage_revision IS DISTINCT FROM coverage_revision;

-- Exactly which objects make a window: one version for each set of files that was ever sealed.
CREATE TABLE seal (
    window_start      timestamptz NOT NULL REFERENCES lake_window,
    version           integer NOT NULL,
    digest            text NOT NULL,
    revision          bigint NOT NULL,
    coverage_revision bigint NOT NULL,
    sealed_at         timestamptz NOT NULL,
    files             bigint NOT NULL,
    rows              bigint NOT NULL,
    bytes             bigint NOT NULL,
    tickers           bigint NOT NULL,
    late_rows         bigint NOT NULL,
    quarantined       bigint NOT NULL,
    PRIMARY KEY (window_start, version)
);

CREATE TABLE seal_file (
    window_start timestamptz NOT NULL,
    version      integer NOT NULL,
    file_id      bigint NOT NULL,
    PRIMARY KEY (window_start, version, file_id),
    FOREIGN KEY (window_start, version) REFERENCES seal
);

-- Which version of a window each step has built; written in the transaction that writes the data.
CREATE TABLE built (
    window_start timestamptz NOT NULL,
    asset        text NOT NULL,
    version      integer NOT NULL,
    digest       text NOT NULL,
    built_at     timestamptz NOT NULL,
    PRIMARY KEY (window_start, asset),
    FOREIGN KEY (window_start, version) REFERENCES seal
);
