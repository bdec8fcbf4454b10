"""``python -m conceptlens``."""

import sys

from .cli import main

sys.exit(main())
