"""`python -m softprompt` is the command `softprompt`."""

import sys

from softprompt.cli import main

if __name__ == "__main__":
    sys.exit(main())
