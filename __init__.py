"""Penstock: language models served on Ray from separate prefill and decode pools, with live migration."""

__version__ = "0.1.0"
