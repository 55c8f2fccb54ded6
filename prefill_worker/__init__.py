"""What is particular to the prefill of a sequence."""
