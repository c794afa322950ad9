"""Boxes and their commands on Docker Engine; the only place that imports docker and requests."""
