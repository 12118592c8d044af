import pytest

from rewound.report.overlay import read_overlay


def write(tmp_path, text):
    path = tmp_path / "points.csv"
    path.write_text(text)
    return path


def test_one_overlay_a_network_and_a_line_a_method(overlay_file):
    first, second = read_overlay(overlay_file)
    assert first.label == "resnet20, Unstructured, iterative" and second.label.startswith("resnet56")
    assert [line.method for line in first.lines] == ["FT", "LRR"]
    assert first.source == "published.csv"


def test_the_retraining_time_is_chosen_on_validation(overlay_file):
    line = read_overlay(overlay_file)[0].lines[0]
    assert {row["retrain_epochs"] for row in line.rows} == {
        182
    }  # the better val_median, and the worse test_median
    assert [density for density, _ in line.values(False)] == sorted(
        (0.8**k for k in range(1, 8)), reverse=True
    )


def test_without_validation_every_retraining_time_is_a_line(tmp_path):
    path = write(tmp_path, "density,method,retrain_epochs,test_median\n0.5,FT,10,90\n0.5,FT,20,91\n")
    assert [line.method for line in read_overlay(path)[0].lines] == ["FT t=10", "FT t=20"]


def test_percent_meets_fractions(tmp_path):
    head = "density,method,test_median,delta_median\n"
    percent = read_overlay(write(tmp_path, head + "0.5,FT,90,-1.5\n"))[0].lines[0]
    assert percent.values(True) == [(0.5, pytest.approx(0.9))] and percent.changes(True) == [(0.5, -1.5)]
    fraction = read_overlay(write(tmp_path, head + "0.5,FT,0.9,-0.015\n"))[0].lines[0]
    assert fraction.values(True) == [(0.5, 0.9)] and fraction.changes(True) == [(0.5, pytest.approx(-1.5))]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("density,metod,test_median\n", "unknown column 'metod'; did you mean 'method'"),
        ("density,density,method,test_median\n", "column 'density' is there twice"),
        ("method,test_median\n", "no column 'density'"),
        ("density,method\n", "neither a column 'test_median' .* nor 'delta_median'"),
        ("density,method,test_median\n", "no points"),
        ("", "no column 'density' and no column 'method'"),
        (
            "density,method,test_median\n0.5,FT,high\n",
            "line 2: column 'test_median' must be a number .*'high'",
        ),
        ("density,method,test_median\n0.5,FT,nan\n", "line 2: column 'test_median' must be a number"),
        ("density,method,test_median\n50,FT,90\n", r"line 2: column 'density' must be in \(0, 1\]"),
        ("density,method,test_median\n0.5,FT\n", "line 2: 2 cells for 3 columns"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        read_overlay(write(tmp_path, text))


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no overlay .*none.csv"):
        read_overlay(tmp_path / "none.csv")


def test_a_file_that_is_no_text_is_said(tmp_path):
    (tmp_path / "points.csv").write_bytes(b"\xff\xfe\x00density")
    with pytest.raises(ValueError, match="no CSV file in UTF-8"):
        read_overlay(tmp_path / "points.csv")
