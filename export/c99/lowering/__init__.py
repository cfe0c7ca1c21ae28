"""Lower the static graph of a policy to the steps of a C function: formulas of single elements."""
