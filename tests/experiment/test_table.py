from rewound.experiment.table import as_markdown, as_text, make_table


def test_one_row_a_density_one_column_a_technique_then_the_costs(make_results):
    table = make_table(make_results())
    assert table.head == ("density", "ratio", "fine-tuning", "weight-rewinding", "lr-rewinding")
    assert [row[:2] for row in table.rows[table.rule :]] == [
        ("test", "at the end"),
        ("search cost", "epochs"),
        ("of a seed", "FLOPs"),
    ]
    assert table.rows[0][0] == "1 (original)"
    assert table.rows[-2][2:] == ("220", "220", "220")
    assert table.rows[-1][2:] == ("3.2e+11",) * 3


def test_the_notes_tell_validation_from_test(make_results):
    notes = " ".join(make_table(make_results()).notes)
    assert "Validation accuracy after retraining, median of 3 seeds" in notes
    assert "held-out test split, evaluated once" in notes


def test_one_seed_has_no_range_and_a_missing_cost_is_a_dash(make_results):
    results = make_results(seeds=1)
    for arm in results["arms"]:
        arm["search_cost"]["flops"] = None
    table = make_table(results)
    assert "(" not in table.rows[1][2]
    assert table.rows[-1][2:] == ("-", "-", "-")


def test_a_dense_control_has_a_row_of_its_own(make_control):
    table = make_table(make_control())
    assert table.rows[: table.rule] == (("1 (original)", "1x", "0.700"), ("1 (retrained)", "1x", "0.900"))
    assert not any("control" in note for note in table.notes)


def test_without_a_control_a_note_says_so_and_how_to_run_one(make_results):
    (note,) = [note for note in make_table(make_results()).notes if "control" in note]
    assert "no dense network trained for as many epochs is in this table" in note
    assert "--set rate=0 --set 'until=10 rounds'" in note


def test_runs_that_end_at_different_densities_say_where(make_results):
    results = make_results(rounds=3)
    for arm in results["arms"]:
        arm["best"] = 2 - (arm["technique"] == "fine-tuning" and arm["seed"] == 0)
    table = make_table(results)
    assert table.rows[table.rule] == ("density", "at the end", "0.64 (0.64-0.8)", "0.64", "0.64")


def test_a_collapsed_layer_is_told_under_the_table(make_results):
    results = make_results()
    results["arms"][0]["rounds"][5]["collapsed"] = ["fc.weight"]
    assert any("In 1 run nothing survived of some tensor" in note for note in make_table(results).notes)


def test_arms_that_failed_are_counted(make_results):
    results = make_results()
    results["arms"][0]["status"] = "failed"
    assert "1 of 9 arms did not finish" in make_table(results).notes[-1]


def test_text_and_markdown_hold_the_same_cells(make_results):
    table = make_table(make_results())
    text, markdown = as_text(table), as_markdown(table)
    for row in table.rows:
        for cell in row:
            assert cell in text
            assert f"| {cell} |" in markdown
    assert text.isascii()


def test_numbers_below_zero_are_not_joined_by_a_dash(make_results):
    results = make_results({"lr-rewinding": 2.0}, metric="r2")
    assert " to -" in make_table(results).rows[-4][2]
