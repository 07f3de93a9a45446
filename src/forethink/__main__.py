"""``python -m forethink``, the same as the command ``forethink``."""

import sys

from forethink.cli import main

if __name__ == "__main__":
    sys.exit(main())
