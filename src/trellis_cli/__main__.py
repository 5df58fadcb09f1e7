"""`python -m trellis_cli` is `trellis`."""

import sys

from trellis_cli.app import main

sys.exit(main())
