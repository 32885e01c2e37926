"""The distiller: a small student that predicts the hidden states of a large speech model.

DistilHuBERT (Chang, Yang and Lee, 2021, arXiv 2110.01900) and what follows from it for any teacher.
"""
