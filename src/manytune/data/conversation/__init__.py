"""Conversations: the forms in which files hold them, and what of them a model is given and learns."""
