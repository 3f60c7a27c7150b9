"""python -m lawa"""

import sys

from lawa.cli import main

sys.exit(main())
