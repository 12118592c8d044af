"""Put arrays back into the shape that a model's arguments and results had: ``Graph.structure`` says it (JSON).

    arguments   one row an argument of forward: {"name", "positional", "tree"}
    results     a tree
    batch       "", or why the batch is fixed

A tree is {"value": place among graph.outputs, or name among graph.inputs}, {"constant": value}, {"tuple": [...]},
{"list": [...]}, {"dict": {...}} or {"record": class name, "fields": {...}}. A value among results has its torch "dtype", and a
"view" where torch's tensor has its batch elsewhere: {"axes", "shape"}, permuted, then reshaped (-1 is the batch's axis);
"first" where it has none, being the same for every image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Record(dict[str, Any]):
    """The fields of a result that was a named tuple or a Hugging Face ModelOutput: by name, as attributes, in order by index."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field {name!r}; fields: {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, (int, slice)) else super().__getitem__(key)


def restored(tree: Mapping[str, Any], outputs: Sequence[Any]) -> Any:
    """Return a model's results from the arrays of ``graph.outputs``.

    >>> restored({"tuple": [{"value": 0, "dtype": "float32"}, {"constant": 3}]}, ["logits"])
    ('logits', 3)
    """
    if "value" in tree:
        x = outputs[tree["value"]]
        view = tree.get("view")
        if view:  # numpy's transpose is torch's permute
            moved = x.permute(view["axes"]) if hasattr(x, "permute") else x.transpose(view["axes"])
            x = moved.reshape(view["shape"])
        return x[0] if tree.get("first") else x
    if "constant" in tree:
        return tree["constant"]
    if "tuple" in tree or "list" in tree:
        items = [restored(item, outputs) for item in tree.get("tuple", tree.get("list", ()))]
        return tuple(items) if "tuple" in tree else items
    fields = {
        name: restored(item, outputs) for name, item in tree.get("dict", tree.get("fields", {})).items()
    }
    return fields if "dict" in tree else Record(fields)


def bound(
    rows: Sequence[Mapping[str, Any]], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return name of an input -> what a call gives for it. ``TypeError`` if arguments are missing, unknown or nested otherwise
    than the example's; constants of the example must be what they were.

    >>> bound([{"name": "x", "positional": True, "tree": {"value": "x"}}], [], {"x": 5})
    {'x': 5}
    """
    names = [row["name"] for row in rows]
    if len(args) > len(names):
        raise TypeError(
            f"{len(args)} arguments, and the model was compiled with {len(names)}: {', '.join(names)}"
        )
    given = dict(zip(names, args))
    for name, value in kwargs.items():
        if name not in names:
            raise TypeError(
                f"the model was compiled without an argument {name!r}; its arguments: {', '.join(names)}"
            )
        if name in given:
            raise TypeError(f"argument {name!r} is given twice")
        given[name] = value
    found: dict[str, Any] = {}
    for row in rows:
        constant = row["tree"].get("constant", _NOTHING)
        if row["name"] not in given and constant is _NOTHING:
            raise TypeError(
                f"argument {row['name']!r} is missing; the model was compiled with {', '.join(names)}"
            )
        if row["name"] in given:
            _bind(row["tree"], given[row["name"]], row["name"], found.__setitem__)
    return found


_NOTHING = object()


def _bind(tree: Mapping[str, Any], value: Any, name: str, keep: Callable[[str, Any], None]) -> None:
    if "value" in tree:
        keep(tree["value"], value)
    elif "constant" in tree:
        if value != tree["constant"] and repr(value) != tree["constant"]:
            raise TypeError(
                f"argument {name!r} is {value!r}, and the model was compiled with {tree['constant']!r}"
            )
    elif "dict" in tree:
        if not isinstance(value, Mapping) or set(value) != set(tree["dict"]):
            raise TypeError(f"argument {name!r} must be a dict of {', '.join(tree['dict'])}")
        for key, item in tree["dict"].items():
            _bind(item, value[key], f"{name}[{key!r}]", keep)
    else:
        items = tree.get("tuple", tree.get("list", ()))
        if not isinstance(value, (list, tuple)) or len(value) != len(items):
            raise TypeError(f"argument {name!r} must be a sequence of {len(items)}")
        for i, item in enumerate(items):
            _bind(item, value[i], f"{name}[{i}]", keep)
