"""A store of adapters on shared storage: S3, Google Cloud Storage, Azure, through fsspec."""
