"""What acts unasked: reconciliation, restarts, orphans, idle boxes."""
