"""The coordinator: one REST address for all boxes, a registry, and calls to the workers."""

import warnings

# Connexion imports a test client that we do not use, and that one warns every user of ours.
warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient`")
