"""``print(find_units(model, example))`` is documentation: what goes with what, and why the rest stays."""

from __future__ import annotations

import pytest
import torch
from tests.compaction.zoo import ZOO
from torch import Tensor, nn

import rewound
from rewound.compaction.units import masks_of


def told(model: nn.Module, example: Tensor) -> list[str]:
    return str(rewound.find_units(model.eval(), example)).splitlines()


def test_a_group_tells_who_writes_it_what_goes_with_it_and_who_reads_it():
    lines = told(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(2, 4)
    )
    assert lines[:4] == [
        "1 group of units that can leave; 74 weights in all",
        "  8 hidden units in 1 group: 72 weights, 97.3%",
        "0  8 hidden units, EXACT",
        "  written by 0.weight[0]; with 0.bias[0], 1.weight[0], 1.bias[0]; read by 3.weight[1]; 2 buffers",
    ]
    assert lines[4] == "what stays, and why"
    assert lines[-2:] == ["  is an output of the model", "    3.weight[0], 3.bias[0]"]


def test_groups_that_differ_in_a_number_share_a_paragraph():
    blocks = [layer for _ in range(5) for layer in (nn.Linear(6, 6), nn.ReLU())]
    lines = told(nn.Sequential(*blocks, nn.Linear(6, 6)), torch.ones(1, 6))
    assert lines[1] == "  30 hidden units in 5 groups: 246 weights, 97.6%"
    assert [line for line in lines if not line.startswith(" ")][1:-1] == ["0  6 hidden units, EXACT"]
    assert "  alike: 2 ... 8 (4)" in lines
    lines = told(nn.Sequential(*blocks[:4], nn.Linear(6, 6)), torch.ones(1, 6))
    assert "  alike: 2" in lines


def test_long_lists_are_cut_short_and_repeated_entries_counted():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3, padding=1)
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(9))
            self.last = nn.Linear(4 * 16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.layers:
                x = x + layer(x).relu()
            return self.last(x.flatten(1))

    lines = told(Residual(), torch.ones(1, 1, 4, 4))
    (paragraph,) = [line for line in lines if line.startswith("  written by")]
    assert paragraph.startswith(
        "  written by first.weight[0], layers.0.weight[0], layers.1.weight[0], layers.2.weight[0] and 6 more; with first.bias[0]"
    )
    assert paragraph.endswith("layers.3.weight[1] and 6 more")
    assert not any("kernel" in line for line in lines)
    assert "read by 3.weight[1] x16" in told(
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), torch.ones(1, 1, 4, 4)
    )[3]  # fmt: skip


def test_what_is_not_exact_says_why_and_where():
    model, example = ZOO["transformer_encoder"]()
    lines = told(model, example)
    (line,) = [line for line in lines if line.startswith("0  ")]
    why = "is the width of a LayerNorm: its mean and variance would change (layer_norm at"
    assert line.startswith(f"0  12 of width, APPROXIMATE: {why}")


def test_a_network_that_nothing_can_leave_says_so():
    lines = told(nn.Linear(4, 2), torch.ones(1, 4))
    assert lines[:2] == ["nothing can leave this network of 10 weights", "what stays, and why"]
    assert "    weight[0], bias[0]" in lines


@pytest.mark.parametrize(
    "name", ["resnet_20", "densenet", "decoder_gqa", "lstm_language_model", "multihead_attention"]
)
def test_the_counts_are_those_of_the_masks(name):
    model, example = ZOO[name]()
    structure = rewound.find_units(model, example)
    lines = str(structure).splitlines()
    for kind in {group.kind for group in structure}:
        groups = [g for g in structure if g.kind == kind]
        dead = masks_of(
            structure.restricted(groups), {g.name: torch.zeros(g.size, dtype=torch.bool) for g in groups}
        )
        weights = sum(int((~mask).sum()) for mask in dead.values())
        units = sum(g.size for g in groups)
        noun = "of width" if kind == "width" else f"{kind}s"
        plural = "s" if len(groups) > 1 else ""
        share = weights / sum(p.numel() for p in model.parameters())
        assert f"  {units} {noun} in {len(groups)} group{plural}: {weights:,} weights, {share:.1%}" in lines
