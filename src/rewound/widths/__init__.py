"""How much stays so that the network meets a target: multiply-adds, parameters, or measured latency.

Of units (channels, heads): how wide every group may be. Of single weights and blocks: how dense every tensor may be.

goals        for_speedup, for_multiply_adds, for_parameters: what a user asks for
goal         what they have in common       computed, measured   the two kinds
plan         a network of units, made ready
rungs        the widths a group may have, and what is lost at each
densities    a network of weights or blocks, made ready
multipliers  the least loss within a budget of multiply-adds, exactly, weight by weight
knapsack     dynamic programming: the least loss within a budget, where costs add up
search       the same where the cost of a layer depends on the groups it reads and writes
table        measured times of operators over their widths
engine       measured times of layers over their densities
speedup      from the table to the real network: measure, correct, until the asked speed-up is met
report       what was asked and what was met, in words
"""
