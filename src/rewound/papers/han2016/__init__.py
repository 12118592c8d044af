"""Han, Mao and Dally 2016, "Deep Compression" (ICLR), and Han et al. 2016, "EIE" (ISCA): few weights, fewer bits, less work.

sharing       trained quantisation: k-means codebooks that any optimizer goes on training
accounting    the size of what is left, by the papers' arithmetic
multiplies    how many multiplications EIE makes, zero activations skipped
"""

from rewound.papers.han2016.accounting import Compressed, CompressedLayer, compressed
from rewound.papers.han2016.multiplies import multiplies
from rewound.papers.han2016.sharing import SharedWeights, share_weights

__all__ = ["Compressed", "CompressedLayer", "SharedWeights", "compressed", "multiplies", "share_weights"]
