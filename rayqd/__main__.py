import sys

from rayqd.cli import main

if __name__ == "__main__":
    sys.exit(main())
