"""`python -m sam_jax` is `sam-jax`."""

import sys

from sam_jax.cli import main

sys.exit(main())
