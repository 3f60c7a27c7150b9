"""python -m lawa.cli"""

import sys

from lawa.cli import main

sys.exit(main())
