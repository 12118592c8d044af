"""Measure what a model costs: parameters and FLOPs."""
