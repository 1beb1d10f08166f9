import numpy as np
import pandas as pd
import pytest

from pipeline.results import COLUMNS, METRICS, Results, ResultsError, cube, table_of, tidy


def test_results_survive_their_files(synthetic, tmp_path):
    results = synthetic.results()
    results.save(tmp_path)
    again = Results.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, results.table)
    assert again.run == results.run
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ResultsError, match="holds no readable"):
        Results.load(tmp_path)


def test_the_table_has_its_columns_and_only_values(synthetic):
    table = synthetic.results().table
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
    assert table["value"].notna().all()
    assert table["metric"].map(lambda name: any(name.startswith(known) for known in METRICS)).all()


def test_a_cube_undoes_tidy_and_marks_what_is_absent():
    values = np.arange(6.0).reshape(2, 3)
    rows = table_of([tidy("score", "task step", values, task=[3, 5], step=[10, 20, 30], method="full")])
    levels, found = cube(rows.iloc[1:], "task", "step")
    assert [level.tolist() for level in levels] == [[3, 5], [10, 20, 30]]
    assert np.isnan(found[0, 0])
    np.testing.assert_array_equal(found.ravel()[1:], values.ravel()[1:])
    _, chosen = cube(rows, "step", "task", task=[5, 4])
    np.testing.assert_array_equal(chosen, [[3, np.nan], [4, np.nan], [5, np.nan]])


def test_two_values_for_one_place_are_refused():
    rows = table_of([tidy("score", "task", [1.0, 2.0], task=[0, 0], method="full")])
    with pytest.raises(ResultsError, match="Two results stand for the same task"):
        cube(rows, "task")


def test_values_that_do_not_fit_their_axes_are_refused():
    with pytest.raises(ResultsError, match=r"score: values of shape \(2, 3\) do not fit step task"):
        tidy("score", "step task", np.zeros((2, 3)), task=[0, 1], step=[1, 2, 3], method="full")
