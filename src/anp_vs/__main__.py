"""python -m anp_vs."""

import sys

from anp_vs.cli import main

sys.exit(main())
