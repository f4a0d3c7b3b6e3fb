"""The program `sage`.  Beside the package and not in it: importing that takes long enough for a Ctrl-C."""

import sys


def main() -> int:
    """Run one command; returns the exit status.  What goes wrong while it is imported is told as at any other time."""
    try:
        from sage.commands.main import main
        return main()
    except KeyboardInterrupt:
        print("sage: interrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError, MemoryError) as error:
        from sage.errors import of_the_machine
        if not (said := of_the_machine(error)):
            raise
        print(f"sage: error: {said}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
