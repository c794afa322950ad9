"""`python -m boxlite_server.client` is the same as `boxlite`."""

from .cli import main

raise SystemExit(main())
