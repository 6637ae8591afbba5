"""`python -m l2s_jax` is `l2s`."""

import sys

from l2s_jax.cli.main import main

sys.exit(main())
