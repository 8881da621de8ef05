"""Kernels in C++ for training on CPUs: attention of packed batches, and what LoRA adds to a linear layer.

Compiled on this machine when a training first wants them (a few seconds, kept in manytune's cache directory) and
checked against torch before they are used. Without a C++ compiler, and for tensors they don't take, torch's own
operations do the same work.
"""
