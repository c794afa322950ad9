"""Certificates of a cluster's own authority, and the files that they are in."""
