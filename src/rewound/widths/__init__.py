"""How wide every group of units may be so that the network meets a target: multiply-adds, parameters, or measured latency.

goals      the allocations: for_speedup, for_multiply_adds, for_parameters
rungs      the widths a group may have, and what is lost at each
knapsack   dynamic programming: the least loss within a budget, where costs add up
search     the same where the cost of a layer depends on the groups it reads and writes
table      measured times of operators over their widths
speedup    from the table to the real network: measure, correct, until the asked speed-up is met
report     what was asked and what was met, in words
"""
