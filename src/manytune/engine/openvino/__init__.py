"""The decoder's forward in OpenVINO: converted from the torch model, with paged attention and adapters' terms."""
