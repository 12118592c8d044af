"""Han, Pool, Tran and Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks": train, prune, retrain.

thresholds    a layer's threshold is a quality times the deviation of its weights; how sensitive each layer is
stages        layers of one kind are pruned and retrained, the others frozen; then the other kind; round by round
dropout       fewer connections overfit less: dropout falls with the square root of what is left
dead          units that lost all inputs or all outputs lose the rest
"""

from rewound.papers.han2015.dead import without_dead
from rewound.papers.han2015.dropout import adjust_dropout_
from rewound.papers.han2015.stages import Stage, han2015
from rewound.papers.han2015.thresholds import choose_qualities, sensitivity, threshold_mask

__all__ = [
    "Stage",
    "adjust_dropout_",
    "choose_qualities",
    "han2015",
    "sensitivity",
    "threshold_mask",
    "without_dead",
]
