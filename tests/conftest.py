"""Options and shared fixtures. Devices are faked before any test uses jax."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
import pytest
from jax._src import compiler

jax.config.update("jax_num_cpu_devices", 8)

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes")
    parser.addoption(
        "--needs",
        action="store_true",
        help="run only the tests that need PyTorch, shared data, a browser or --slow",
    )
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with --slow")
    config.addinivalue_line("markers", "torch: compares with the released code in PyTorch")
    config.addinivalue_line("markers", "browser: drives a real Chromium")
    config.addinivalue_line("markers", "onnx: converts with jax2onnx")
    config.addinivalue_line("markers", "optimised: compiled as users' programs are")
    config.addinivalue_line("markers", "shared: needs the photographs under ../shared/data")


def pytest_collection_modifyitems(config, items):
    slow = pytest.mark.skip(reason="takes minutes: run with --slow")
    browser = pytest.mark.skip(reason="drives a Chromium: run with --needs")
    for item in items:
        if item.get_closest_marker("browser") and not config.getoption("--needs"):
            item.add_marker(browser)
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(slow)
    if config.getoption("--needs"):
        wanted = [
            item
            for item in items
            if any(
                item.get_closest_marker(name)
                for name in ("slow", "torch", "shared", "browser", "onnx")
            )
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = 1


def pytest_runtest_setup(item):
    if item.get_closest_marker("torch"):
        missing = [m for m in ("torch", "segment_anything") if importlib.util.find_spec(m) is None]
        if missing:
            pytest.skip(f"compares with the released code: needs {' and '.join(missing)}")
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        pytest.skip(f"needs the shared photographs at {SHARED}")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiled programs are kept between tests, by all workers in one folder.

    They are kept between runs too where SAM_JAX_TEST_CACHE names that folder.
    """
    folder = os.environ.get("SAM_JAX_TEST_CACHE")
    if not folder:
        folder = tmp_path_factory.getbasetemp()
        folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    yield


compile_options = compiler.get_compile_options


def hurried_options(*args, **kwargs):
    """XLA's options with its older code generation, which takes two thirds of the time.

    JAX's own names have no door for an option of all programs; XLA_FLAGS would hold for the modules
    with the mark `optimised` too.
    """
    options = compile_options(*args, **kwargs)
    options.env_option_overrides = [
        *options.env_option_overrides,
        ("xla_cpu_use_fusion_emitters", False),
    ]
    return options


@pytest.fixture(scope="module", autouse=True)
def compiled_in_a_hurry(request):
    """Compiling takes longer than computing here, so most modules leave XLA's optimisations out.

    Those with the mark `optimised` compile as users do: where numbers are compared to the digit,
    where programs that another process compiles have to be the same, and where computing does take
    longer.
    """
    hurry = request.node.get_closest_marker("optimised") is None
    if hurry != jax.config.values["jax_disable_most_optimizations"]:
        jax.clear_caches()
        if compiled := sys.modules.get("sam_jax.inference.compiled"):
            compiled._executables.clear()
        jax.config.update("jax_disable_most_optimizations", hurry)
        compiler.get_compile_options = hurried_options if hurry else compile_options


def hurried() -> dict[str, str]:
    """The same for a process that a test starts: what to put into its environment."""
    return {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="session")
def shared():
    """The folder of shared photographs; tests that use it carry the mark `shared`."""
    return SHARED
