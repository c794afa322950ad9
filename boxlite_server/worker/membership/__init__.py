"""The worker's identity, and what it reports to its coordinator."""
