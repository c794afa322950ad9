"""`python -m boxlite_server.client` is the same as `boxlite`."""

from boxlite_server.client.cli import main

raise SystemExit(main())
