"""The simulated exchange: a seeded market of crypto-like assets whose truth is known."""
