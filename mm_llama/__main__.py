"""`python -m mm_llama VERB ...` equals the console script `mm-llama VERB ...`."""

import sys

from mm_llama.cli import main

sys.exit(main())
