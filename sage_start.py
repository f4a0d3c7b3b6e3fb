"""The program `sage`.  Beside the package and not in it: importing that takes long enough for a Ctrl-C."""

import sys


def main() -> int:
    """Run one command; returns the exit status.  Ctrl-C while it is being imported is told as at any other time."""
    try:
        from sage.commands.main import main
        return main()
    except KeyboardInterrupt:
        print("sage: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
