-- What each worker makes of the disk_size_gb of a box: enforced, watched or unsupported; NULL: it does not say.

ALTER TABLE workers ADD COLUMN disk_limit TEXT;
