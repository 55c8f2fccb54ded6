"""The handover protocol: how a sequence changes owner so that each token reaches the client exactly once.

Values, and pure machines over them (events in, effects out; no clock, no I/O, no torch). Only `wire` knows protobuf.
"""
