"""Commands in boxes: their output, input, ends and time limits, and what outlives a restart of the worker."""
