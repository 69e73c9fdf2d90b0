-- Windows whose raw data is not there any more: docs/housekeeping.md. Those that are too old are before the instant
-- `frozen_until` in `meta`; one whose objects turned out to be gone says so itself.
ALTER TABLE lake_window ADD COLUMN gone_path text;
COMMENT ON COLUMN lake_window.gone_path IS 'A raw object that was not there when the window was to be built: it is not asked for again';
