"""What is particular to the decoding of a sequence."""
