"""Training's tests are mostly compiling: all day they compile with XLA's optimisations off."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """With `--needs`, as in the gate, what is slow or compared is compiled as for users."""
    jax.config.update("jax_disable_most_optimizations", not request.config.getoption("--needs"))
    yield
    jax.config.update("jax_disable_most_optimizations", False)
