"""The page at /ui/: its files below static/, and how browsers get them."""
