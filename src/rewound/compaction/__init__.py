"""Smaller networks: which channels, heads and hidden units leave together, and the ordinary module without them.

capture     the model's operators as a graph (torch.export; a recorded run where that fails)
coupling    what every operator says about the indices it meets  -> a Structure (units.py)
contracts   one rule an operator: what leaves together, what may not leave, what stays zero
surgery     the smaller module: sliced tensors, mended attributes, a Coordinates map (coordinates.py)
proof       masked and compact are the same function: run both, in float64, before anything is returned
"""
