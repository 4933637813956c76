"""Makes `foreign_files` importable: pytest's import mode leaves the folders of tests off the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
