"""The engine's part of the configuration."""

from dataclasses import dataclass
from pathlib import Path

from ..policy.admission import RULES

EMBEDDED = "embedded"
DTYPES = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
OVERLAPS = ("auto", "on", "off")
TRANSPORTS = ("auto", "local", "gloo", "nccl")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How one instance runs its model. Bad values are refused when it is made."""

    model: str = EMBEDDED
    """Folder of a Hugging Face checkpoint (config.json, safetensors, tokenizer), or `embedded`."""

    dtype: str = "auto"
    """Type of weights and KV: `float32`, `bfloat16`, or `auto` (float32 on CPUs, bfloat16 on GPUs)."""

    device: str = "auto"
    """`cpu`, `cuda`, or `auto` (a GPU where there is one)."""

    block_size: int = 16
    """Tokens per KV block."""

    kv_blocks: int = 0
    """KV blocks of an instance; 0 takes as many as fit into `kv_bytes`."""

    kv_bytes: int = 128 << 20
    """Memory of an instance's KV cache in bytes, where `kv_blocks` is 0."""

    host_kv_bytes: int = 0
    """Host memory of an instance, in bytes, for the KV of what ended or gave its memory back; 0 keeps none there."""

    prefix_cache: bool = True
    """Keep the KV of what was computed until its memory is needed, and share it among equal prefixes of one tenant."""

    admission: str = "predicted"
    """Who enters memory: `predicted` (while it is expected to suffice), `aggressive` (while it suffices now) or
    `conservative` (while it suffices for the longest that sequences may become)."""

    threads: int = 1
    """CPU threads within one operator."""

    tensor_parallel: int = 1
    """Processes that share an instance's model: each holds some heads and a part of every feed-forward."""

    overlap: str = "auto"
    """Whether a step is launched before the results of the one before it are handled: `on`, `off`, or `auto` (on a GPU,
    where that hides the host's work). Instances of several ranks never do."""

    decode_graphs: bool = True
    """Replay steps that only decode as CUDA graphs, where that is possible: on one GPU, but for mixtures of experts."""

    transport: str = "auto"
    """How KV leaves: `local` (same host, in place), `gloo`, `nccl`, or `auto` (the best for each pair)."""

    def __post_init__(self) -> None:
        _require_one_of("dtype", self.dtype, DTYPES)
        _require_one_of("device", self.device, DEVICES)
        _require_one_of("transport", self.transport, TRANSPORTS)
        _require_one_of("overlap", self.overlap, OVERLAPS)
        _require_one_of("admission", self.admission, tuple(RULES))
        for name, most in (("block_size", 1 << 16), ("threads", 1024), ("tensor_parallel", 64)):
            _require_at_least(name, getattr(self, name), 1)
            if getattr(self, name) > most:
                raise ValueError(f"engine.{name} must be at most {most}, got {getattr(self, name)}")
        _require_at_least("kv_bytes", self.kv_bytes, 1)
        _require_at_least("kv_blocks", self.kv_blocks, 0)
        _require_at_least("host_kv_bytes", self.host_kv_bytes, 0)
        if self.host_kv_bytes and not self.prefix_cache:
            raise ValueError(
                "engine.host_kv_bytes needs engine.prefix_cache, by which blocks are found again"
            )
        for name in ("prefix_cache", "decode_graphs"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"engine.{name} must be true or false, got {value!r}")
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"engine.model must be a folder or `{EMBEDDED}`, got {self.model!r}")

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        if self.model == EMBEDDED:
            return Path(__file__).with_name("embedded")
        return Path(self.model).expanduser()

    def block_count(self, block_bytes: int) -> int:
        """KV blocks of an instance whose blocks have `block_bytes` each."""
        count = self.kv_blocks or self.kv_bytes // block_bytes
        if count < 1:
            raise ValueError(f"engine.kv_bytes={self.kv_bytes} holds no block of {block_bytes} bytes")
        return count

    def host_block_count(self, block_bytes: int) -> int:
        """Blocks of `block_bytes` each in host memory; ValueError where it is to hold some, and cannot."""
        count = self.host_kv_bytes // block_bytes
        if self.host_kv_bytes and not count:
            raise ValueError(
                f"engine.host_kv_bytes={self.host_kv_bytes} holds no block of {block_bytes} bytes"
            )
        return count


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"engine.{name} must be one of {', '.join(allowed)}, got {value!r}")


def _require_at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"engine.{name} must be an integer of at least {least}, got {value!r}")
