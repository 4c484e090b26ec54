"""Decoder families over one shared set of layers."""
