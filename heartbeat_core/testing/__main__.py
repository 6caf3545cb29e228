"""The simulator on the command line."""

import sys

from heartbeat_core.testing._command import main

if __name__ == "__main__":
    sys.exit(main())
