"""`ascl prepare` under the name by which programs of this field are started."""

import sys

from ascl.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
