"""`python -m sage`."""

import sys

from sage.commands.main import main

sys.exit(main())
