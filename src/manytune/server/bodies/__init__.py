"""The bodies of requests: their fields, and what is wrong with one that is refused."""
