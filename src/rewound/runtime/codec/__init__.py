"""Weights in fewer bytes, without torch: how an engine's file is coded, and the formats of EIE and Deep Compression.

bits       numbers of a few bits, packed;  native   the native decoders, where they are
places     where survivors stand: a bit map, or the zeros between them (the engine's file)
values     what survivors are: float32, bfloat16, float16, or indices into a codebook (the engine's file)
weight     a weight in parts: values, places, codebook (the engine's file)
codebook   the shared values: k-means in one dimension (Han et al. 2016)
relative   how many stored entries relative indices of a few bits need, padding zeros included
eie        EIE's format: columns of (4-bit index of a value, 4-bit run of zeros), exact there and back
huffman    canonical Huffman codes, and their size
sizes      every one of these for every layer of a model, side by side
"""
