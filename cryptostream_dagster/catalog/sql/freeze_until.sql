-- Only ever forward: what the catalog has forgotten cannot be built again, whatever a setting says later.
INSERT INTO meta (key, value) VALUES ('frozen_until', %(until)s)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
WHERE meta.value::timestamptz < excluded.value::timestamptz
