"""Files into and out of boxes, as tar archives."""
