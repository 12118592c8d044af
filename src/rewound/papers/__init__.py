"""Pruning as other papers do it, each in its own room: data and loops on top of the one pruner.

li2017         filters by their L1 norm: rates layer by layer and the layers left out
molchanov2017  one map after the other by Taylor, a few updates between
oracle         what removing each unit really does, and the rank correlation with it (Molchanov et al. 2017)
zimmer2023     BIMP: a budget of epochs, the dense phase included
he2017         channels by LASSO, and the next layer's weights by least squares
han2015        thresholds by layer, kinds of layers in turn, dropout and dead units
lottery        winning tickets and their controls, early stopping, instability between two runs
overlap        how alike two masks are, and how many signs training turned
rosenfeld2021  the scaling law of pruning error, fitted
han2016        what is left in fewer bits: trained codebooks, Huffman codes, EIE's format and multiplications
"""
