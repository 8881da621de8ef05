"""Which adapters a server has: what their names mean, which it can run, and which are in memory."""
