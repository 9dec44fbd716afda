"""No module imports itself through others: imports inside functions and for type checkers counted."""

from graphlib import TopologicalSorter

import grimp

PACKAGES = ("safework_cli", "safework_data", "safework_sft", "safework_rl", "safework_verifier", "safework_eval", "safework_search")


def test_no_import_cycles():
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > 500  # the graph was read
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules of the cycle
