"""The program that runs commands inside boxes, and the worker's way to it."""
