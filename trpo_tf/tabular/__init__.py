"""The exact laboratory: finite Markov decision processes on which every quantity of the theory is computed, in float64.

Equation numbers are those of docs/laboratory.md.
"""
