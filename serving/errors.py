"""What goes wrong with a bundle. On its own, so that who only starts and watches servers imports nothing heavy."""


class BundleError(ValueError):
    """A bundle that is missing, damaged or not understood; the message says what to do."""
