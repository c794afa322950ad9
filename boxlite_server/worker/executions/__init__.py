"""Commands in boxes: their output, input, ends and time limits, and their survival of a worker's restart."""
