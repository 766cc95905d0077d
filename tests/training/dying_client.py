"""A process that dies in the middle of its writes, for tests of what it leaves behind."""

WRITES = ("create_", "delete_", "log_", "set_", "transition_", "update_")


class Killed(BaseException):
    """Where kill -9 hit."""


class DyingClient:
    """An MLflow client that does ``num_writes`` writes and then no more: the next one raises, and all after it."""

    def __init__(self, client, num_writes: int) -> None:
        self.client = client
        self.left = num_writes

    def __getattr__(self, name: str):
        method = getattr(self.client, name)
        if not name.startswith(WRITES):
            return method

        def write(*args, **kwargs):
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return method(*args, **kwargs)

        return write
