"""The gRPC front of a cluster: tokenizes, dispatches, keeps sessions over the loss of instances. Needs no torch."""
