"""The page on chat templates says what the templates do."""

from template_table import PAGE, table, written


def test_the_table_of_stock_templates_is_current(tiny_model):
    assert written() == table(tiny_model), f"{PAGE}: run python tests/template_table.py"
