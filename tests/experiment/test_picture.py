import builtins
import xml.etree.ElementTree as ElementTree

import pytest

from rewound.experiment.picture import draw


def test_a_png_and_an_svg_are_drawn(make_results, tmp_path):
    assert draw(make_results(), tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    root = ElementTree.parse(draw(make_results(), tmp_path / "a.svg")).getroot()
    assert root.tag.endswith("svg")


@pytest.mark.parametrize("count", [1, 12])
def test_one_technique_or_a_dozen(make_results, tmp_path, count):
    lost = {f"technique-{k}": 0.01 * k for k in range(count)}
    assert draw(make_results(lost, seeds=1), tmp_path / "a.png").stat().st_size > 10_000


def test_nothing_finished_is_an_error(make_results, tmp_path):
    results = make_results()
    for arm in results["arms"]:
        arm["status"] = "failed"
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(results, tmp_path / "a.png")


def test_a_control_that_pruned_nothing_is_no_line(make_control, tmp_path):
    with pytest.raises(ValueError, match="no arm finished with a pruned network"):
        draw(make_control(), tmp_path / "a.png")


def test_thousandfold_ratios_are_written_out(make_results, tmp_path):
    text = draw(make_results(rounds=41), tmp_path / "a.svg").read_text()
    assert "7,692x" in text
    assert "e+0" not in text


def test_without_matplotlib_the_message_says_what_to_install(make_results, tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'rewound\[tasks\]'"):
        draw(make_results(), tmp_path / "a.png")
