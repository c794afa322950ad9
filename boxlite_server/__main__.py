"""`python -m boxlite_server` is the same as `boxlite-server`."""

import sys

from .cli.main import main

sys.exit(main())
