"""Which channels are constants: what the graph computes where nothing depends on the input.

A filter of zeros with a bias, a batch norm whose scale is zero, sigmoid(0): the slice of such a unit holds one number,
whatever the input. Every tensor of the graph is given as *what it holds*: a float64 tensor with an axis of size 1 wherever all
entries are alike, and NaN for what varies; operators are carried out on that. What reads a unit is noted on the way, and
decides whether it can leave (``foreign.py``).

    holding     tensors of that kind                     reckoner    the graph, operator by operator; ``Read``
    moving      element by element, and movement         sums        linear, convolution, matrix products, attention
    statistics  norms, reductions                        space       pooling, upsampling
    recurrent   LSTM, GRU

No operator is guessed at: what is not read here varies, and what it reads stays.
"""
