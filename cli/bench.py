"""`penstock bench`: one measurement each."""

from __future__ import annotations

from .lazy import LazyGroup

COMMANDS = {
    "admission": ("penstock.cli.bench_admission", "Preemptions and tokens/s of three rules of admission."),
    "cancel": ("penstock.cli.bench_cancel", "How soon a cancelled request has left every instance."),
    "engine": (
        "penstock.cli.bench_engine",
        "One instance beside transformers, and what a step spends around its model.",
    ),
    "kernels": ("penstock.cli.bench_kernels", "Attention and block copies of a GPU, as shares of its peak."),
    "load": ("penstock.cli.bench_load", "A workload replayed against a cluster, and what its clients felt."),
    "migration": (
        "penstock.cli.bench_migration",
        "Downtime of live, blocking and recomputed moves by context.",
    ),
    "overload": ("penstock.cli.bench_overload", "Three times what a cluster can serve, for a minute."),
    "prefix": ("penstock.cli.bench_prefix", "Hit rates of the prefix cache on a conversation trace."),
    "recovery": ("penstock.cli.bench_recovery", "Gaps in streams by what was done to the cluster."),
    "scheduling": (
        "penstock.cli.bench_scheduling",
        "Rules of dispatch and migration on mixed instances under bursts.",
    ),
    "transfer": ("penstock.cli.bench_transfer", "GB/s of the KV transports beside a socket and a copy."),
}

command = LazyGroup("bench", table=COMMANDS, help="Measure one thing, and print figures with their units.")
