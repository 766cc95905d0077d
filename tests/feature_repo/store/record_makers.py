"""Views for the tests that share a database: each test has its own."""

import uuid


def new_view() -> str:
    """Name of a view that no other test uses."""
    return f"view_{uuid.uuid4().hex}"
