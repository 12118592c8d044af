"""From a model to its plan and to its smaller network: CPU seconds; beside it Torch-Pruning 1.6.1, in turns.

    python benchmarks/compaction.py                       # pip install torch-pruning==1.6.1 for the other side
    python benchmarks/compaction.py --quick --out /tmp    # tiny networks: does it run?

Every measurement is a fresh process of one thread; process CPU time, imports not counted. "First" is the first call of a
process (torch.export loads its own modules then), "again" the second one. Half of the units of every layer leave, on both
sides. rewound: prune(pattern="unit") is capture to plan, compact() includes the proof in float64. Torch-Pruning: its constructor
traces the model, step() prunes; it proves nothing. It is told what its own examples tell it, to leave the classifier alone, and
nothing else; "global": one ranking for all layers (the layers of the others lose half each); "heads": which linear layers have
how many heads, and the sizes in the attention modules set by hand afterwards.

Error: the pruned network against the dense one with everything that was removed set to zero (rows, what reads them, biases,
norms), in float64: max|a - b| / max|b|. What Torch-Pruning removed is read off a copy whose weights are their own positions.

Takes about ten minutes. Finished measurements are kept in --work, so that a killed benchmark goes on where it was.
"""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from _fresh import answer, ask, parser, shown
from _machine import facts, write_record

GOALS = {
    "ResNet-50": 3.0,
    "ViT-B": 3.0,
    "BERT-base": 3.0,
    "Llama-7B": 60.0,
}  # CPU seconds from capture to plan
WHOLE_GOAL = 3.0  # and for pruning half of ResNet-50 and compacting it
PEERS = {
    "ResNet-50": ("default", "global"),
    "ViT-B": ("default", "global", "heads"),
    "BERT-base": ("default", "global", "heads"),
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "query", "key", "value")


# ---- in a process of its own -------------------------------------------------------------------------------------


def child(side: str, network: str, quick: bool, repeat: int) -> dict[str, Any]:
    """Measure one side on one network (``repeat`` only tells questions apart)."""
    found = ours(network, quick) if side == "rewound" else theirs(side, network, quick)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**found, "peak_mb": peak * (1 if sys.platform == "darwin" else 1024) / 1e6}


def clocked(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return (result, CPU seconds of this process)."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def ours(network: str, quick: bool) -> dict[str, Any]:
    """Plan, and compact; each twice. On the meta device there is nothing to rank: the plan is what could leave."""
    from _networks import build

    import rewound

    model, example = build(network, quick)
    size = sum(p.numel() for p in model.parameters())
    found: dict[str, Any] = {"plan": [], "compact": [], "parameters": size}
    for _ in ("first", "again"):
        if next(model.parameters()).is_meta:
            structure, seconds = clocked(lambda: rewound.find_units(model, example))
            found["plan"].append(seconds)
            kinds = {g.kind for g in structure}
            found["units"] = {
                kind: sum(g.size for g in structure if g.kind == kind) for kind in sorted(kinds)
            }
            continue
        mask, seconds = clocked(
            lambda: rewound.prune(model, 0.5, pattern="unit", allocation="uniform", example=example)
        )
        found["plan"].append(seconds)
        small, seconds = clocked(lambda mask=mask: rewound.compact(model, mask, example))
        found["compact"].append(seconds)
    if found["compact"]:
        found |= after(model, small, mask, example)
    return found


def theirs(variant: str, network: str, quick: bool) -> dict[str, Any]:
    """Trace and prune with Torch-Pruning, twice; ``found["error"]`` where that can be told."""
    try:
        import torch_pruning
    except ImportError:
        return {"failed": "not installed (pip install torch-pruning==1.6.1)"}
    import torch
    from _networks import build

    model, example = build(network, quick)
    magnitude = torch_pruning.importance.MagnitudeImportance(p=2)
    scores: list[Any] = []

    def noted(group: Any) -> Any:
        scores.append(magnitude(group))
        return scores[-1]

    found: dict[str, Any] = {
        "plan": [],
        "prune": [],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    for turn in ("first", "again"):
        pruned = copy.deepcopy(model)
        importance = magnitude if turn == "first" else noted
        try:
            pruner, seconds = clocked(lambda p=pruned, i=importance: _pruner(p, example, variant, i))
            found["plan"].append(seconds)
            found["prune"].append(clocked(pruner.step)[1])
        except Exception as error:
            return {**found, "runs": False, "why": f"while pruning: {_first_line(error)}"}
        if variant == "heads":
            _mend_heads(pruned, pruner.num_heads)
    # The same decisions on a copy whose weights are their own positions: what is left of them is what was kept.
    numbered = copy.deepcopy(model).double()
    with torch.no_grad():
        for p in numbered.parameters():
            p.copy_(torch.arange(p.numel(), dtype=torch.float64).reshape(p.shape))
    replay = iter(scores)
    _pruner(numbered, example, variant, lambda group: next(replay)).step()
    left = dict(numbered.named_parameters())
    mask, shapes = {}, {name: p.shape for name, p in pruned.named_parameters()}
    for name, p in model.named_parameters():
        if name not in left or left[name].shape != shapes.get(name):
            return {**found, **after(model, pruned, None, example)}
        mask[name] = torch.zeros(p.numel(), dtype=torch.bool)
        mask[name][left[name].detach().long().reshape(-1)] = True
        mask[name] = mask[name].reshape(p.shape)
    del numbered, left
    return {**found, **after(model, pruned, mask, example)}


def _pruner(model: Any, example: Any, variant: str, importance: Any) -> Any:
    import torch_pruning
    from torch import nn

    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    example = (
        example.double()
        if next(model.parameters()).element_size() == 8 and example.is_floating_point()
        else example
    )
    heads = {}
    if variant == "heads":
        number = model.config.num_attention_heads
        heads = {m: number for name, m in model.named_modules() if name.rpartition(".")[2] in _PROJECTIONS}
    return torch_pruning.pruner.BasePruner(
        model, example, importance, global_pruning=variant == "global", pruning_ratio=0.5, ignored_layers=[last],
        num_heads=heads, in_channel_groups={}, out_channel_groups={},
    )  # fmt: skip


def _mend_heads(model: Any, heads: Mapping[Any, int]) -> None:
    """What its example for Hugging Face's models does after pruning: sizes that the attention modules keep."""
    for module in model.modules():
        query = getattr(module, "q_proj", None) or getattr(module, "query", None)
        if query in heads:
            module.num_attention_heads = heads[query]
            for name in ("head_dim", "attention_head_size"):
                if hasattr(module, name):
                    setattr(module, name, query.out_features // heads[query])
            if hasattr(module, "all_head_size"):
                module.all_head_size = query.out_features


def after(model: Any, small: Any, mask: Mapping[str, Any] | None, example: Any) -> dict[str, Any]:
    """Does it run, how large is it, and how far is it from the masked model (None: not known what was removed)?"""
    found: dict[str, Any] = {"left": sum(p.numel() for p in small.parameters())}
    try:
        theirs = _outputs(small, example)
    except Exception as error:
        return {**found, "runs": False, "why": _first_line(error)}
    masked = copy.deepcopy(model).double()
    for name, p in masked.named_parameters():
        if mask is not None and name in mask:
            p.data.masked_fill_(~mask[name], 0)
    expected = _outputs(masked, example, copied=True)
    same = [a.shape for a in theirs] == [b.shape for b in expected]
    error = None
    if same and mask is not None:
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(theirs, expected))
    return {**found, "runs": True, "same_shapes": same, "error": error}


def _outputs(model: Any, example: Any, copied: bool = False) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    inputs = example if isinstance(example, tuple) else (example,)
    inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        result = (model if copied else copy.deepcopy(model).double()).eval()(*inputs)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"


# ---- the record --------------------------------------------------------------------------------------------------


def main() -> None:
    made = parser(__doc__, work="runs/compaction")
    made.add_argument("--repeats", type=int, default=5, help="processes for each (default: %(default)s)")
    made.add_argument("--networks", nargs="+", choices=list(GOALS), default=list(GOALS))
    given = made.parse_args()
    if given.child:
        answer(given.child, child)
        return
    machine = {**facts(), "torch_threads": 1}
    repeats = 1 if given.quick else given.repeats
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for repeat in range(repeats):
        for network in given.networks:
            sides = ["rewound", *PEERS.get(network, ())]
            for side in sides if repeat % 2 == 0 else reversed(sides):
                # seconds are of the process, so that a limit is only for what never ends
                one = ask(given.work, 1800, side=side, network=network, quick=given.quick, repeat=repeat)
                found.setdefault(network, {}).setdefault(side, []).append(one)
                print(f"{repeat + 1}/{repeats} {network}, {side}: {_told(one)}", flush=True)
    page = text(found)
    print(
        page, "", write_record("compaction", {"machine": machine, "found": found}, page, given.out), sep="\n"
    )


def _told(one: dict[str, Any]) -> str:
    if "failed" in one:
        return one["failed"]
    parts = [
        f"{key} {', '.join(f'{s:.2f}' for s in one[key])} s"
        for key in ("plan", "compact", "prune")
        if one.get(key)
    ]
    return "; ".join([*parts, one.get("why", "")]).removesuffix("; ")


def _seconds(ones: list[dict[str, Any]], keys: tuple[str, ...], turn: int) -> list[float]:
    """Sums over ``keys`` of the seconds of one turn (0: first, 1: again), of the processes that came so far."""
    return [sum(one[k][turn] for k in keys) for one in ones if all(len(one.get(k, ())) > turn for k in keys)]


def text(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Return the tables: seconds are median (range) over processes."""
    lines = [
        "CPU seconds, median (range over processes). \"First\": the first call of a process, \"again\": the second.", "",
        "From capture to plan (what leaves, half of every layer; Llama-7B, on the meta device: what could leave):", "",
        "| network | parameters | first | again | asked for | peak memory, MB |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for network, sides in found.items():
        ones = sides["rewound"]
        size, peak = ones[0].get("parameters", 0), [one["peak_mb"] for one in ones if "peak_mb" in one]
        cells = [
            shown(_seconds(ones, ("plan",), 0)),
            shown(_seconds(ones, ("plan",), 1)),
            f"at most {GOALS[network]:g}",
        ]
        lines.append(f"| {network} | {size:,} | {' | '.join(cells)} | {shown(peak, 0)} |")
    lines += [
        "", f"From the model to the smaller network (rewound: with proof; asked for on ResNet-50: at most {WHOLE_GOAL:g}):", "",
        "| network | tool | first | again | runs after | parameters | error to masked |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for network, sides in found.items():
        for side, ones in sides.items():
            one, rewound = ones[0], side == "rewound"
            if rewound and not one.get("compact"):
                continue
            tool = "rewound" if rewound else f"Torch-Pruning, {side}"
            if "failed" in one:
                lines.append(f"| {network} | {tool} | {one['failed']} | | | | |")
                continue
            keys = ("plan", "compact" if rewound else "prune")
            runs = "yes" if one["runs"] else f"no: {one['why']}"
            runs += "" if one.get("same_shapes", True) else ", its outputs have other shapes"
            sizes = f"{one['parameters']:,} to {one['left']:,}" if "left" in one else f"{one['parameters']:,}"
            error = "-" if one.get("error") is None else f"{one['error']:.1e}"
            times = [shown(_seconds(ones, keys, turn)) for turn in (0, 1)]
            lines.append(f"| {network} | {tool} | {' | '.join(times)} | {runs} | {sizes} | {error} |")
    lines += [
        "", "rewound's pattern \"unit\" takes channels, heads and hidden units that leave exactly; Torch-Pruning narrows the "
        "residual stream of ViT and BERT, too, which a LayerNorm cannot lose exactly, so that its networks are smaller there.",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
