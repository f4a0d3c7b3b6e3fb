"""The program `sage` as `python -m sage`."""

import sys

from sage_start import main

if __name__ == "__main__":
    sys.exit(main())
