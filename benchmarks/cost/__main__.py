import sys

from benchmarks.cost.program import main

sys.exit(main())
