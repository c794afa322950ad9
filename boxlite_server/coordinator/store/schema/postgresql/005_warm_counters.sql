-- What became of warm boxes. Boxes that were made or given up are counted under the empty prefix, which owned them.

ALTER TABLE counters ADD COLUMN warm_claims   BIGINT NOT NULL DEFAULT 0;  -- requests that got a warm box
ALTER TABLE counters ADD COLUMN warm_misses   BIGINT NOT NULL DEFAULT 0;  -- requests that fitted a pool without a box
ALTER TABLE counters ADD COLUMN warm_made     BIGINT NOT NULL DEFAULT 0;
ALTER TABLE counters ADD COLUMN warm_given_up BIGINT NOT NULL DEFAULT 0;  -- to make room
