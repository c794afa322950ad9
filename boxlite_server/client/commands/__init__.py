"""The commands of `boxlite`, in one module for each group."""
