"""The parts that act unasked: reconciliation, restarts, removal of orphans, deadlines of boxes."""
