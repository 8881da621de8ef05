"""Encoder-decoders in the engine: an encoder's pass, the keys and values that decoders attend to, and their reading."""
