"""What a training or a service would take, from a model's config alone: nothing is loaded, and torch isn't imported."""
