"""Every Triton kernel compiles for the GPUs that it is meant for, and fits their shared memory; no GPU is needed."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from penstock.kernels import (  # noqa: E402
    attention_triton,
    blocks_triton,
    rms_norm_triton,
    rope_triton,
    segments_triton,
    silu_mul_triton,
    store_kv_triton,
)

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
"""What one program may have (CUDA C++ Programming Guide, table of compute capabilities)."""
NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
ARCHITECTURES = pytest.mark.parametrize("arch", SHARED_BYTES)


def compile_for(arch, kernel, types, constants, **options):
    """Compiles as a launch would, with aligned pointers; returns what the compiler says of the program."""
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    assert set(names) == set(types) | set(constants), "a parameter is typed or constant"
    attrs = {
        (names.index(name),): [["tt.divisibility", 16]] for name, kind in types.items() if kind[0] == "*"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_BYTES[arch]
    return compiled


def compile_attention(arch, dtype, heads, kv_heads, dim, block, kind, window=0):
    shape_of = attention_triton.decode_shape if kind == "decode" else attention_triton.chunk_shape
    shape = shape_of(heads // kv_heads, dim, dtype)
    with_lse = kind != "chunk"
    types = {"q": NAMES[dtype], "kv": NAMES[dtype], "out": "*fp32" if with_lse else NAMES[dtype]}
    types |= {"items": "*i32", "tables": "*i32"} | ({"lse": "*fp32"} if with_lse else {})
    types |= {"q_stride": "i32", "values_offset": "i64", "table_width": "i32", "scale_log2": "fp32"}
    constants = {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "DIM": dim,
        "DIM_PAD": max(16, triton.next_power_of_2(dim)),
        "BLOCK": block,
        "WINDOW": window,
        "WITH_LSE": with_lse,
        "ROWS": shape.rows,
        "KEYS": shape.keys,
    } | ({} if with_lse else {"lse": None})
    options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
    return compile_for(arch, attention_triton.attend, types, constants, **options)


BF16, FP32 = torch.bfloat16, torch.float32
SHAPES = [
    # heads, key heads, head dimension, block size
    ("decode", BF16, (32, 8, 64, 32), 0),
    ("decode", BF16, (32, 8, 128, 16), 0),
    ("decode", BF16, (6, 2, 48, 16), 0),
    ("decode", BF16, (8, 1, 256, 16), 0),
    ("decode", FP32, (32, 8, 128, 16), 0),
    ("shared", BF16, (64, 8, 128, 16), 0),
    ("chunk", BF16, (32, 8, 64, 32), 0),
    ("chunk", BF16, (32, 8, 128, 16), 0),
    ("chunk", BF16, (32, 8, 128, 16), 4096),
    ("chunk", BF16, (6, 2, 48, 16), 0),
    ("chunk", FP32, (6, 2, 48, 16), 256),
    ("chunk", BF16, (8, 1, 256, 16), 0),
]


@ARCHITECTURES
@pytest.mark.parametrize("kind, dtype, shape, window", SHAPES)
def test_attention(arch, kind, dtype, shape, window):
    compile_attention(arch, dtype, *shape, kind, window)


@pytest.mark.slow
@ARCHITECTURES
@pytest.mark.parametrize("kind", ["decode", "shared", "chunk"])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("dim", [16, 32, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("heads, kv_heads, block, window", [(32, 8, 32, 0), (32, 1, 5, 4096)])
def test_attention_of_every_shape(arch, kind, dtype, dim, heads, kv_heads, block, window):
    compile_attention(arch, dtype, heads, kv_heads, dim, block, kind, window if kind == "chunk" else 0)


@ARCHITECTURES
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("dim", [48, 128])
def test_the_merge_of_parts(arch, dtype, dim):
    types = {"parts": "*fp32", "parts_lse": "*fp32", "spans": "*i32", "out": NAMES[dtype], "lse": "*fp32"}
    pad = triton.next_power_of_2(dim)
    constants = {"HEADS": 32, "DIM": dim, "DIM_PAD": pad, "PARTS": segments_triton.MERGE_PARTS}
    compile_for(arch, segments_triton.merge, types, constants, num_warps=4)


@ARCHITECTURES
@pytest.mark.parametrize("width", [128, 4096])
@pytest.mark.parametrize("add", [True, False])
def test_rms_norm(arch, width, add):
    pointers = ("x", "weight", "out", *(("update", "total") if add else ()))
    types = dict.fromkeys(pointers, "*bf16") | {"x_stride": "i32", "width": "i32", "eps": "fp32"}
    constants = {"ADD": add, "WIDTH_PAD": width} | ({} if add else {"update": None, "total": None})
    compile_for(arch, rms_norm_triton.normalise, types, constants, num_warps=rms_norm_triton.warps(width))


@ARCHITECTURES
@pytest.mark.parametrize("dim", [48, 128])
def test_rope(arch, dim):
    types = {"x": "*bf16", "rotations": "*fp32", "out": "*bf16", "x_stride": "i32", "heads": "i32"}
    pad = triton.next_power_of_2(dim // 2)
    constants = {"DIM": dim, "PAIRS_PAD": pad, "HEADS_TILE": rope_triton.HEADS_AT_ONCE}
    compile_for(arch, rope_triton.rotate, types, constants, num_warps=2)


@ARCHITECTURES
def test_the_activation(arch):
    types = {"gate_up": "*bf16", "out": "*bf16", "width": "i32"}
    compile_for(arch, silu_mul_triton.activate, types, {"TILE": silu_mul_triton.TILE}, num_warps=4)


@ARCHITECTURES
def test_store_kv(arch):
    types = dict.fromkeys(("k", "v", "kv"), "*bf16") | {"slots": "*i64", "values_offset": "i64"}
    types |= dict.fromkeys(("k_stride", "v_stride", "width"), "i32")
    compile_for(arch, store_kv_triton.store, types, {"WIDTH_PAD": 1024}, num_warps=4)


@ARCHITECTURES
@pytest.mark.parametrize("gather", [True, False])
def test_copies_of_blocks(arch, gather):
    types = {"cache": "*i32", "staging": "*i32", "blocks": "*i64", "values_offset": "i64", "page": "i32"}
    constants = {"GATHER": gather, "TILE": blocks_triton.TILE}
    compile_for(arch, blocks_triton.copy_pages, types, constants, num_warps=4)
