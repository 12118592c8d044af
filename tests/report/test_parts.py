import csv
import io

from rewound.report.parts import Table, clean, shown


def test_csv_reads_back_in_full():
    table = Table("t", "T", ("a", "b"), (("x,y", 1 / 3), ('"quoted"\nline', None)))
    rows = list(csv.reader(io.StringIO(table.csv)))
    assert rows == [["a", "b"], ["x,y", repr(1 / 3)], ['"quoted"\nline', ""]]


def test_a_spreadsheet_finds_no_formula():
    table = Table("t", "T", ("name",), (("=HYPERLINK(1)",), ("+1",), ("@x",)))
    assert table.csv.splitlines()[1:] == ["'=HYPERLINK(1)", "'+1", "'@x"]


def test_negative_numbers_stay_numbers():
    assert Table("t", "T", ("change",), ((-0.5,),)).csv.splitlines()[1] == "-0.5"


def test_latex_escapes_and_aligns():
    latex = Table("t", "50 % & more", ("a_b", "n"), ((r"\input{x}$^~", 1234), ("y", None))).latex
    assert r"\caption{50 \% \& more}" in latex
    assert r"\begin{tabular}{lr}" in latex
    assert r"\textbackslash{}input\{x\}\$\textasciicircum{}\textasciitilde{} & 1,234 \\" in latex
    assert r"y & - \\" in latex


def test_what_xml_does_not_bear_is_replaced():
    assert clean("a\x00b\x1bc\ud800") == "a\ufffdb\ufffdc\ufffd"
    assert clean("tab\tand\nline") == "tab\tand\nline"


def test_numbers_are_short():
    assert [shown(v) for v in (0.123456, 12345, -2.5, float("inf"))] == ["0.1235", "12,345", "-2.5", "inf"]
