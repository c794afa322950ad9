"""Who this worker is, and what it tells its coordinator."""
