"""Commands that the program in each box, the supervisor, starts."""
