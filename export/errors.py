"""Errors of the exporter."""


class ExportError(RuntimeError):
    """A function can't be exported, or its export acts otherwise; the message says what to do."""


class ParityError(ExportError):
    """A target differs from the policy or loses return; `table` shows how all targets compare."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


XLA_FUNCTION = (
    "a tf.function made with jit_compile=True, which no converter looks into; call its python_function, and replace a "
    "Keras convolution of several groups by one for each group"
)
