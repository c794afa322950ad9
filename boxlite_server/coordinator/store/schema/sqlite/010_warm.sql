-- Warm boxes: prepared at a worker and owned by nobody, under the empty prefix, until a request claims one.

CREATE TABLE warm_pools (
    image      TEXT NOT NULL,                 -- the full reference
    cpus       INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    boxes      INTEGER NOT NULL,              -- to be kept ready in the whole fleet
    PRIMARY KEY (image, cpus, memory_mib)
) STRICT;

ALTER TABLE workers ADD COLUMN warm_images TEXT NOT NULL DEFAULT '{}';  -- JSON object: numbers of boxes, by image

ALTER TABLE boxes ADD COLUMN warm TEXT;       -- what a request has to ask for to claim the box; NULL: it is no warm box
ALTER TABLE boxes ADD COLUMN image_id TEXT;   -- of a warm box: the image that it is made of

CREATE INDEX boxes_warm ON boxes (warm) WHERE warm IS NOT NULL;
