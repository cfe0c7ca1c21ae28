"""C99 code of a policy for firmware: no allocation, weights in flash, `math.h` alone.

`c_sources` writes `policy.h` and `policy.c` from an exported graph; `compiled_actor` runs them on this machine, to
compare them with what they come from.
"""

from trpo_tf.export.c99.c_files import HEADER_FILE, SOURCE_FILE, argument_names, arguments, c_sources
from trpo_tf.export.c99.host_compile import compiled_actor, compiled_step, host_compiler

__all__ = [
    "HEADER_FILE",
    "SOURCE_FILE",
    "argument_names",
    "arguments",
    "c_sources",
    "compiled_actor",
    "compiled_step",
    "host_compiler",
]
