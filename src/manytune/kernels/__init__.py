"""Fast products on CPUs: in C++ attention of packed batches, what LoRA adds to a layer in training, and what the adapters
of a batch add, where each row has its own; linear layers through oneDNN.

C++ is compiled on this machine when it is first wanted (a few seconds, kept in manytune's cache directory) and checked
against torch before it is used. Without a C++ compiler, and for tensors the kernels don't take, torch's own operations do
the same work.
"""
