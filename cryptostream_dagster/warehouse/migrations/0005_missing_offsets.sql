-- Commits with offsets that the broker no longer had are few, and every window asks for them.
CREATE INDEX lake_commit_missing ON lake_commit (committed_at) WHERE missing > 0;
