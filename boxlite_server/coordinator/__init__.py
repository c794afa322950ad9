"""The coordinator: it serves one REST address for all boxes, keeps the registry and calls the workers."""

import warnings

# Connexion imports a test client, which nothing here uses and which would warn every user of the coordinator.
warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient`")
