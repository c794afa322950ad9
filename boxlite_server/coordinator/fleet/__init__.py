"""The workers, and the way to them."""
