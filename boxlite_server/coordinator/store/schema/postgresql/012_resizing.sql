-- Whether a change of the box's cpus or memory is under way or was broken off. Its `spec` tells the former size then,
-- and `cpus` and `memory_mib` what is reserved, the larger of each.

ALTER TABLE boxes ADD COLUMN resizing BOOLEAN NOT NULL DEFAULT false;
CREATE INDEX boxes_resizing ON boxes (worker_id) WHERE resizing;
