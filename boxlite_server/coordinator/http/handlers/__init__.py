"""The functions that serve the operations of openapi.yaml: one module for each tag."""
