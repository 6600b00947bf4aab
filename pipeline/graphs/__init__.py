"""Semantic graphs: exact neighbours (eqs. 4, 5), subspace pursuit (Algorithm 1) and their fusion (eq. 6)."""
