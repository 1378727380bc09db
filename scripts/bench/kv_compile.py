"""Compile the decoding kernels to machine code without a GPU: registers, spills, shared memory and code loads.

    python -m scripts.bench.kv_compile --capability 90

``loads`` are the instructions that fetch codes and masks in PTX, by width: with ``b8`` alone codes would come a byte at
a time. Nothing runs, so nothing is said about time.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from longvid_train.kvcache.kernels.sides import Side
from longvid_train.kvcache.rotation import Rotation

HEADS, HEAD_DIM, ROWS = 4, 128, 16
INTEGERS = ("mask_row", "mask_query", "heads", "rows", "queries", "parts", "part_tokens")
LONGS = ("table", "first_position", "padding")


def contenders() -> dict[str, tuple[Side, Side]]:
    """Sides of the presets by name."""
    ones, rotation = torch.ones(HEADS, HEAD_DIM), Rotation(torch.ones(HEAD_DIM // 2))

    def even(bits: int, **more: Any) -> Side:
        return Side(bits=bits, scale=ones, offset=ones, **more)

    uneven = {"scale": ones, "offset": ones, "stored": "token gain", "levels": torch.ones(4)}
    grouped = Side(bits=2, stored="channel groups", group=32)
    return {
        "static8": (even(8), even(8)),
        "static4": (even(4), even(4)),
        "static3": (even(3), even(3)),
        "static2": (even(2), even(2)),
        "bias2": (even(2, mean=ones, rotation=rotation), even(2)),
        "lloyd2": (Side(bits=2, mean=ones, rotation=rotation, rotates_codes=True, **uneven), Side(bits=2, **uneven)),
        "k4v2": (Side(bits=4, stored="channel groups", group=HEAD_DIM), even(2)),
        "kivi_g32": (Side(bits=2, stored="token groups", group=32), grouped),
    }


def compiled(keys: Side, values: Side, capability: int) -> Any:
    """What Triton makes of `split_pass` for one pair of sides."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from longvid_train.kvcache.kernels import split_kv
    from longvid_train.kvcache.kernels.decoder import WARPS, PageDecoder

    decoder = PageDecoder(keys, values, heads=HEADS, head_dim=HEAD_DIM, exact=False)
    constants = decoder.constants() | {"SINKS": 4, "MASK": 1, "BR": ROWS}
    names = split_kv.split_pass.arg_names
    signature = {
        name: "constexpr"
        if name in constants
        else "i32"
        if name in INTEGERS
        else "*i64"
        if name in LONGS
        else "*u8"
        if name == "mask"
        else "*fp32"
        for name in names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if signature[name].startswith("*")
    }
    source = ASTSource(split_kv.split_pass, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})


def resources(machine_code: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of its stack, of a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"split_pass:\s*REG:(\d+) STACK:(\d+)", told).groups()  # type: ignore[union-attr]
    return int(registers), int(stack)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="of the GPU: 80 for A100, 90 for H100 and H200")
    options = parser.parse_args()
    if find_spec("triton") is None:
        sys.exit("kv_compile: Triton is not installed (pip install triton)")
    print("| preset | registers | spilled bytes | shared bytes | loads |\n|---|---|---|---|---|")
    for name, (keys, values) in contenders().items():
        made = compiled(keys, values, options.capability)
        registers, stack = resources(made.asm["cubin"])
        loads = Counter(re.findall(r"(?:ld\.global|cp\.async\.c[ag]\.shared\.global)[\w.]*", made.asm["ptx"]))
        words = ", ".join(f"{count} {kind}" for kind, count in sorted(loads.items()))
        print(f"| {name} | {registers} | {stack} | {made.metadata.shared} | {words} |", flush=True)


if __name__ == "__main__":
    main()
