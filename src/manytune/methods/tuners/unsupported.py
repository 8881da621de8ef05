"""What some methods can't do, as errors that are also of the classes that HF PEFT raises there."""

from __future__ import annotations

from manytune.errors import AdapterError


class NotInLayersError(AdapterError, AttributeError):
    """Asked of a method whose adapters aren't in the model's layers, such as a soft prompt: merge, unload."""


class TrainsInUseOnlyError(AdapterError, TypeError):
    """Asked to let adapters train apart from their use, of a method that trains what is in use and nothing else."""
