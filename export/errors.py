"""The exporter's errors."""


class ExportError(RuntimeError):
    """A function that can't be exported, or whose export does not act like it; says what to do."""


class ParityError(ExportError):
    """A target that differs from the policy or loses return; `table` shows how all of them compare."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table
