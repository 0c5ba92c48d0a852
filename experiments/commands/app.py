"""The `hkd` command and its groups, which the files beside this one fill."""

from cyclopts import App

app = App(
    name="hkd",
    help="Reproduce tables of heterogeneous knowledge distillation papers: `hkd run scalekd_table3`.",
    help_format="markdown",
    version_flags=[],
    suppress_keyboard_interrupt=False,
)
runs_app = App(name="runs", help="Look at the records of runs.")
reference_app = App(name="reference", help="What was measured, as it is committed in results/reference/.")
weights_app = App(name="weights", help="Published weights of teachers.")
numerics_app = App(name="numerics", help="Does an edit of the library move a digit? (hkd/numerics.lock)")
bench_app = App(name="bench", help="What this machine does with the papers' pairs.")
app.command(runs_app)
app.command(bench_app)
app.command(numerics_app)
app.command(reference_app)
app.command(weights_app)
