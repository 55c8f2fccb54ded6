"""What a checkpoint folder says of its model, without reading the weights into memory. Free of torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .families import Mixture, read_architecture, with_defaults
from .layout import CacheLayout
from .rope import Rope

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

_SAMPLES_PER_FILE = 64
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The architecture of one decoder, equal for all families once read."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    max_positions: int
    """Longest context in tokens, prompt and output together."""
    norm_eps: float
    rope: Rope
    tied: bool
    """The output projection is the embedding table."""
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    """For each layer how many tokens back a query sees, itself included; None sees all."""
    mixture: Mixture | None
    """None where every feed-forward is dense."""
    eos: frozenset[int]
    fingerprint: str
    """Equal for equal architecture and weights; both ends of a handover compare it."""

    def span(self, block_size: int) -> int | None:
        """Most full blocks before its own that a token sees; None where some layer sees all of them."""
        windows = [window for window in self.windows if window is not None]
        return -(-(max(windows) - 1) // block_size) if len(windows) == len(self.windows) else None

    def longest(self, blocks: int, block_size: int) -> int:
        """Tokens of the longest sequence that a cache of so many blocks serves.

        It is no limit where it holds what a token sees.
        """
        span = self.span(block_size)
        passes = span is not None and span < blocks
        return self.max_positions if passes else min(self.max_positions, blocks * block_size)

    def cache_layout(self, blocks: int, block_size: int, dtype: str) -> CacheLayout:
        """The KV cache of this model with `blocks` blocks of `block_size` tokens."""
        return CacheLayout(
            layers=self.layers,
            blocks=blocks,
            block_size=block_size,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=dtype,
        )

    def block_bytes(self, block_size: int, dtype: str, ranks: int = 1) -> int:
        """KV bytes of one block of `block_size` tokens in all layers, on all `ranks` together."""
        return self.cache_layout(1, block_size, dtype).share(ranks).block_bytes * ranks

    def share(self, ranks: int) -> "ModelSpec":
        """The architecture of what each of `ranks` holds; ValueError where the model cannot be divided so."""
        inner = self.intermediate if self.mixture is None else self.mixture.intermediate
        sizes = {"num_attention_heads": self.heads, "intermediate_size": self.intermediate}
        for name, size in {**sizes, "moe_intermediate_size": inner}.items():
            if size % ranks:
                raise ValueError(f"engine.tensor_parallel: {ranks} does not divide the model's {name} {size}")
        if self.kv_heads % ranks and ranks % self.kv_heads:
            raise ValueError(
                f"engine.tensor_parallel: {ranks} neither divides the model's {self.kv_heads} key-value heads"
                " nor is a multiple of them"
            )
        mixture = self.mixture and replace(self.mixture, intermediate=inner // ranks)
        return replace(
            self,
            heads=self.heads // ranks,
            kv_heads=max(1, self.kv_heads // ranks),
            intermediate=self.intermediate // ranks,
            mixture=mixture,
        )


def read_checkpoint(folder: Path) -> ModelSpec:
    """Reads config.json and generation_config.json of `folder` and fingerprints its weights.

    Raises ValueError, in one sentence for a person, for a folder or model that cannot be served.
    """
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder at {folder}")
    config = with_defaults(_read_json(folder / "config.json"))
    architecture = read_architecture(config)
    eos = _end_tokens(folder, config)
    return ModelSpec(**architecture, eos=eos, fingerprint=_fingerprint(architecture, weight_files(folder)))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted; ValueError where one is missing or cut short."""
    index = folder / INDEX_FILE
    if index.is_file():
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ValueError(f"{index} has no weight_map")
        files = sorted({folder / str(name) for name in names.values()})
    else:
        files = [folder / SINGLE_FILE]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"{file} is missing; a checkpoint needs {SINGLE_FILE} or {INDEX_FILE} with its shards"
            )
        _check_complete(file)
    return files


def _end_tokens(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    generation = folder / "generation_config.json"
    eos = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    if eos is None:
        eos = config.get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token, int) for token in ids):
        raise ValueError(f"eos_token_id must be a token id or a list of them, got {eos!r}")
    return frozenset(ids)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value


def _read_header(file: Path) -> bytes:
    """A safetensors file is an 8-byte length, a JSON header of that length, then the tensors' bytes."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return stream.read(length) if length <= file.stat().st_size else b""


def _check_complete(file: Path) -> None:
    try:
        header = json.loads(_read_header(file))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ValueError(f"{file} is truncated or not a safetensors file") from None
    expected = 8 + len(_read_header(file)) + max(ends, default=0)
    size = file.stat().st_size
    if size != expected:
        raise ValueError(f"{file} is truncated or damaged: {size} bytes where its header says {expected}")


def _fingerprint(architecture: Mapping[str, Any], files: list[Path]) -> str:
    """Hashes the architecture and, of each file, name, size, header and evenly spread samples of the weights."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(architecture, sort_keys=True, default=asdict).encode())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode() + _read_header(file))
        with file.open("rb") as stream:
            for sample in range(_SAMPLES_PER_FILE):
                stream.seek(sample * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES_PER_FILE - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
