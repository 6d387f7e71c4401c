"""Attribution measured against the truth: models retrained without songs, and what is known otherwise."""
