"""Many adapters of one base behind one OpenAI-compatible address."""
