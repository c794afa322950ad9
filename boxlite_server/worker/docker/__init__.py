"""Boxes and their commands on Docker Engine. Nothing outside of this folder imports docker or requests."""
