"""`manytune adapters`: adapters on disk, the store that keeps them, and what is made out of them."""
