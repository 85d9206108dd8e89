"""Every form of the encoder's attention against the plain one, and compiled for other machines."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models import attention_gpu, attention_windows_gpu
from sam_jax.models.attention import (
    _by_heads_and_rows,
    _by_rows,
    _folded,
    _kernel_gpu,
    _kernel_tpu,
    _windows_gpu,
    rel_pos_attention,
    relative_table,
)

pytestmark = pytest.mark.optimised

ROOT = Path(__file__).parents[2]
FORMS = {
    "folded": _folded,
    "by rows": _by_rows,
    "by heads and rows": _by_heads_and_rows,
    "kernel for TPUs": functools.partial(_kernel_tpu, interpret=True),
    "kernels for GPUs": functools.partial(_kernel_gpu, interpret=True),
    "kernels for windows on GPUs": functools.partial(_windows_gpu, interpret=True),
    "this machine's": rel_pos_attention,
}
HIGHEST = jax.lax.Precision.HIGHEST


def inputs(hw, dtype="float32", heads=3, width=24):
    keys = jax.random.split(jax.random.key(0), 6)
    q, k, v, g = (jax.random.normal(key, (2, *hw, heads, width)).astype(dtype) for key in keys[:4])
    tables = [
        jax.random.normal(key, (2 * n - 1, width)) * 0.3
        for key, n in zip(keys[4:], hw, strict=True)
    ]
    return (q, k, v, *tables), g


def plain(q, k, v, rel_h, rel_w):
    _, h, w, _, d = q.shape
    by_row, by_column = relative_table(rel_h, h), relative_table(rel_w, w)
    scores = jnp.einsum("bhwnd,bHWnd->bnhwHW", q, k) * d**-0.5
    scores += jnp.einsum("bhwnd,hHd->bnhwH", q, by_row)[..., None]
    scores += jnp.einsum("bhwnd,wWd->bnhwW", q, by_column)[..., None, :]
    weights = jax.nn.softmax(scores.reshape(*scores.shape[:4], -1)).reshape(scores.shape)
    return jnp.einsum("bnhwHW,bHWnd->bhwnd", weights, v)


def with_gradients(form, args, g):
    out, back = jax.vjp(form, *args)
    return out, *back(g.astype(out.dtype))


@pytest.mark.parametrize("hw", [(8, 16), (14, 14), (40, 32)])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_plain_one_and_so_are_its_gradients(name, hw):
    if name == "kernels for GPUs" and not attention_gpu.fits(hw):
        hw = (12, 16)
    args, g = inputs(hw)
    form = functools.partial(FORMS[name], precision=HIGHEST)
    for ours, theirs in zip(
        with_gradients(form, args, g), with_gradients(plain, args, g), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_in_bfloat16_is_the_plain_one_rounded(name):
    args, g = inputs((8, 16), "bfloat16")
    form = functools.partial(FORMS[name], precision=None)
    exact = with_gradients(plain, [x.astype(jnp.float32) for x in args], g)
    for ours, theirs, given in zip(
        with_gradients(form, args, g), exact, (args[2], *args), strict=True
    ):
        assert ours.dtype == given.dtype
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs, atol=0.03 * np.abs(theirs).max(), rtol=0
        )


def test_maps_that_the_gpu_kernels_cannot_take_go_another_way():
    assert attention_gpu.fits((64, 64)) and attention_gpu.fits((32, 32))
    assert not attention_gpu.fits((14, 14)) and not attention_gpu.fits((48, 40))
    args, g = inputs((48, 40))
    for ours, theirs in zip(
        with_gradients(functools.partial(_kernel_gpu, precision=HIGHEST), args, g),
        with_gradients(plain, args, g),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)


def test_maps_too_large_for_a_tpu_go_by_rows():
    def kernels(side, dtype):
        q = jax.ShapeDtypeStruct((1, side, side, 1, 8), dtype)
        tables = [jax.ShapeDtypeStruct((2 * side - 1, 8), jnp.float32)] * 2
        form = functools.partial(_kernel_tpu, precision=None)
        return str(jax.make_jaxpr(form)(q, q, q, *tables)).count("pallas_call")

    assert kernels(64, jnp.bfloat16) == 1 and kernels(32, jnp.float32) == 1
    assert kernels(96, jnp.bfloat16) == kernels(64, jnp.float32) == 0


@pytest.mark.parametrize("side", [14, 64])
def test_gpus_compute_float32_without_kernels(side):
    def kernels(dtype):
        q = jax.ShapeDtypeStruct((1, side, side, 2, 32), dtype)
        table = jax.ShapeDtypeStruct((2 * side - 1, 32), jnp.float32)
        program = jax.jit(rel_pos_attention).trace(q, q, q, table, table)
        return "xla.gpu.triton" in program.lower(lowering_platforms=("cuda",)).as_text()

    assert kernels(jnp.bfloat16) and not kernels(jnp.float32)


def gradient_of_gpu_kernels(where: str, width: int) -> jax.stages.Lowered:
    """The forward and both backward kernels at the released models' sizes, for an NVIDIA GPU."""
    if where != "whole maps":
        hw = {"windows": (14, 14), "small maps": (32, 32)}[where]
        attend = functools.partial(attention_windows_gpu.attend, hw=hw)
        shape = (25, hw[0] * hw[1], 12)
        q, bias = (jax.ShapeDtypeStruct((*shape, n), jnp.bfloat16) for n in (width, sum(hw)))
        biases = [bias]
    else:
        attend = attention_gpu.attend
        q = jax.ShapeDtypeStruct((12, 4096, width), jnp.bfloat16)
        biases = [jax.ShapeDtypeStruct((12, 4096, 64), jnp.float32)] * 2
    gradient = jax.jit(lambda *args: jax.vjp(attend, *args)[1](args[0]))
    return gradient.trace(q, q, q, *biases).lower(lowering_platforms=("cuda",))


GPU_KERNELS = [("whole maps", 64), ("whole maps", 80), ("windows", 64), ("windows", 80)]
GPU_KERNELS += [("small maps", 64)]


@pytest.mark.parametrize(("where", "width"), GPU_KERNELS)
def test_the_gpu_kernels_become_triton_programs(where, width):
    assert gradient_of_gpu_kernels(where, width).as_text().count("@__gpu$xla.gpu.triton") == 3


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(("where", "width"), GPU_KERNELS)
@pytest.mark.parametrize("capability", [80, 90])
def test_triton_compiles_the_gpu_kernels(where, width, capability, tmp_path):
    for number, text in enumerate(triton_programs(gradient_of_gpu_kernels(where, width))):
        (tmp_path / f"{number}.ttir").write_text(text)
    assert number == 2
    # In a process of its own: Triton and JAX each bring an MLIR.
    script = f"""
        import pathlib, sys, triton
        from triton.backends.compiler import GPUTarget
        for path in sorted(pathlib.Path(sys.argv[1]).glob("*.ttir")):
            made = triton.compile(
                str(path), target=GPUTarget("cuda", {capability}, 32),
                options={{"num_warps": 4, "num_stages": 2}},
            )
            assert "mma" in made.asm["ptx"] and made.asm["cubin"]
            print(made.metadata.shared)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    shared = [int(line) for line in done.stdout.split()]
    # What Ada's consumer cards have, which take Ampere's programs, and what an H100 has.
    assert len(shared) == 3 and max(shared) <= {80: 99, 90: 227}[capability] * 1024


def triton_programs(lowered: jax.stages.Lowered):
    """The text of each of the program's kernels."""
    from jax._src.pallas.triton.lowering import _new_ir_context
    from jaxlib.mlir import ir

    def visit(operation):
        if "mhlo.backend_config" in operation.attributes:
            settings = ir.DictAttr(operation.attributes["mhlo.backend_config"])
            with _new_ir_context() as context, ir.Location.unknown(context):
                yield str(ir.Module.parse(ir.StringAttr(settings["ir"]).value_bytes))
        for region in operation.regions:
            for block in region:
                for inner in block:
                    yield from visit(inner.operation)

    yield from visit(lowered.compiler_ir().operation)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiles for TPU: needs libtpu"
)
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_tpu_kernel_compiles_with_its_backward_pass(topology):
    script = f"""
        import os
        from train.compile_check import QUIET, slice_mesh
        os.environ.update(QUIET)
        import jax, jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec
        from sam_jax.models.attention import images_over, rel_pos_attention
        mesh = slice_mesh("{topology}", 1)
        def place(spec, *shape):
            return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        images, tables = PartitionSpec(mesh.axis_names), PartitionSpec()
        for side, windows, width in ((14, 5, 64), (64, 1, 64), (14, 5, 80), (64, 1, 80)):
            def loss(q, k, v, *tables):
                with images_over(mesh):
                    return (rel_pos_attention(q, k, v, *tables).astype(jnp.float32) ** 2).sum()
            q = place(images, windows * mesh.size, side, side, 2, width)
            table = place(tables, 2 * side - 1, width)
            made = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(q, q, q, table, table).compile()
            text = made.as_text()
            assert text.count("tpu_custom_call") >= 2, "no kernel"
            assert "all-gather" not in text, "the kernel fetches others' images"
            assert made.memory_analysis().temp_size_in_bytes < 6e7
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
