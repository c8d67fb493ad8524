"""NVIDIA's aiperf as the generator: the same load by another hand, for who trusts it more or compares with it."""
