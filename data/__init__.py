"""Corpora, question sets, traffic traces and workloads."""
