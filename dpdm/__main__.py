"""`python -m dpdm`: the command line of `dpdm.cli`."""

import sys

from dpdm.cli import main

if __name__ == "__main__":
    sys.exit(main())
