"""The report counts what several tables print as the README does."""

from experiments.report.facts import once
from experiments.report.gather import Entry
from experiments.results.compare import compare


def test_a_comparison_counts_in_one_table_whatever_the_number_of_its_seeds(synthetic):
    entries = []
    for name, seeds in (("hcd_cifar100_core", 3), ("hcd_cifar100", 2)):  # a collection comes after what it collects
        plan = synthetic.plan(pairs=2, seeds=seeds)
        comparison = compare(plan, synthetic.records(plan))
        entries.append(Entry(name=name, page=name, profile="laptop", plan=plan, comparison=comparison))
    counted = once(entries)
    assert len(counted) == len(entries[1].comparison.cells)
    assert {len(result.cell.runs) for result in counted if result.verdict} == {2}
