"""Fast products on CPUs.

In C++: attention of packed batches and what LoRA adds to a layer, for training, and what the adapters of a batch add in
which each row has its own. Through oneDNN: linear layers.

C++ is compiled on this machine when it is first wanted (a few seconds, kept in manytune's cache directory) and checked
against torch before it is used. Without a C++ compiler, and for tensors the kernels don't take, torch's own operations
do the same work.
"""
