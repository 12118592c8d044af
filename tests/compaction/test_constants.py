"""What is said to be constant is: compared with every operator's real results, on several inputs."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from tests.compaction.zoo import ZOO, another
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import rewound
from rewound.compaction.constants.holding import along, zeros_along
from rewound.compaction.constants.moving import regrouped
from rewound.compaction.constants.reckoner import Reckoner
from rewound.compaction.coupling import couple
from rewound.compaction.foreign import leaving
from rewound.tasks.models.resnet import imagenet_resnet
from rewound.untouched import call_of

NAN = float("nan")


class Recorded(fx.Interpreter):
    """Keeps the result of every operator."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.results[n] = [t.clone() if isinstance(t, Tensor) else t for t in tree_leaves(result)]
        return result


def with_zeros(model: nn.Module, example: Any, role: str) -> None:
    """Set to zero, in place, what 40 % of the units have in one role."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for group in rewound.find_units(model, example):
            dead = torch.rand(group.size, generator=random) < 0.4
            for s in group.slices:
                if s.role == role:
                    model.get_parameter(s.tensor).index_fill_(s.axis, s.positions[dead].reshape(-1), 0.0)


@pytest.mark.parametrize("role", ["writes", "affine"])
@pytest.mark.parametrize(
    ("name", "of_writers", "of_affine"),
    [
        ("unet", 20, 1),
        ("efficientnet", 20, 1),
        ("grouped_mixture", 10, 1),
        ("vit_fused_qkv", 5, 1),
        ("decoder_gqa", 20, 1),
        ("bilinear", 3, 0),  # of a bias that is gone nothing is constant
        ("segnet", 5, 1),
        ("graph", 5, 1),
        ("lstm_cell", 1, 1),
        ("bilstm_classifier", 2, 1),
    ],
)
def test_every_operator_gives_what_it_is_said_to_hold(name, of_writers, of_affine, role):
    model, example = ZOO[name]()
    with_zeros(model, example, role)
    coupling = couple(model, example)
    captured = coupling.capture
    tensors = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    reckoner = Reckoner(model, coupling, tensors)
    with torch.no_grad():
        reckoner.graph(captured.graph, captured.module, None)
    known = 0
    for inputs in (example, another(example)):
        run = Recorded(captured.module, graph=captured.graph)
        run.results = {}
        given = iter(tree_leaves(call_of(inputs)))
        places = [n.name for n in captured.graph.nodes if n.op == "placeholder"]
        arguments = [
            tensors[captured.tensors[n]]
            if n in captured.tensors
            else captured.constants[n]
            if n in captured.constants
            else next(given)
            for n in places
        ]
        with torch.no_grad():
            run.run(*arguments, enable_io_processing=False)
        for node, results in run.results.items():
            held = reckoner.held.get(node)
            for said, real in zip(held if isinstance(held, (list, tuple)) else [held], results):
                if node.op != "call_function" or not isinstance(said, Tensor) or not isinstance(real, Tensor):
                    continue
                said = said.double().expand(real.shape)
                there = ~said.isnan()
                known += bool(there.any())
                torch.testing.assert_close(
                    real.double()[there], said[there], msg=lambda m, node=node: f"{node.format_node()}: {m}"
                )
    assert known >= (of_writers if role == "writes" else of_affine)


def test_a_reshape_keeps_what_is_alike_together():
    x = torch.tensor([1.0, NAN, 3.0]).reshape(1, 3, 1, 1)
    assert regrouped(x, (2, 3, 4, 5), (2, 60)).shape == (1, 60)
    assert regrouped(x, (2, 3, 4, 5), (2, 3, 20)).shape == (1, 3, 1)
    assert regrouped(x, (2, 3, 4, 5), (2, 3, 2, 2, 5)).shape == (1, 3, 1, 1, 1)
    assert regrouped(x, (2, 3, 1, 1), (2, 3)).tolist()[0][::2] == [1.0, 3.0]


def test_slices_along_an_axis():
    x = torch.tensor([[0.0, 1.0, NAN], [0.0, 2.0, NAN]])
    assert along(x, 1).tolist()[0] == 0.0
    assert along(x, 1)[1:].isnan().all()
    assert zeros_along((x, 1), (torch.tensor([[1.0, 0.0, 1.0]]), 1), n=3)[:2].tolist() == [0.0, 0.0]


@pytest.mark.slow
def test_a_resnet_50_takes_less_than_a_second():
    model = imagenet_resnet(50).eval()
    image = torch.randn(1, 3, 64, 64)
    coupling = couple(model, image)
    random = torch.Generator().manual_seed(0)
    mask = {
        name: (torch.rand(p.shape[0], generator=random) < 0.5)
        .reshape(-1, 1, 1, 1)
        .expand(p.shape)
        .contiguous()
        for name, p in model.named_parameters()
        if p.ndim == 4
    }
    before = time.process_time()
    found = leaving(model, coupling, mask)
    spent = time.process_time() - before
    assert sum(int((~units).sum()) for units in found.kept.values()) > 1000
    assert spent < 1.0, spent  # 0.35 beside other work
