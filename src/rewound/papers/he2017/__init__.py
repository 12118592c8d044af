"""He, Zhang and Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks": keep what reconstructs best.

pruning     layer by layer, front to back; what is pruned, what is not, and why
samples     inputs and outputs of a layer at sampled places
solve       which units stay (LASSO), and the new weights of what reads them (least squares)
"""

from rewound.papers.he2017.pruning import ChannelPruned, Layer, he2017

__all__ = ["ChannelPruned", "Layer", "he2017"]
