"""`hkd numerics`: does an edit of the library move a digit?"""

from typing import Literal

from rich.text import Text

from experiments.commands.app import numerics_app
from experiments.commands.printed import out
from experiments.execution.progress import clock
from experiments.planning import schema
from hkd.registry import lookup


@numerics_app.command(name="check")
def check_numerics(*, device: Literal["cpu", "cuda"] = "cpu") -> int:
    """Say whether hkd/numerics.lock lists the library's code as it is; exit 1, with the command to run, if not.

    Args:
        device: kind of device that the code is proved on.
    """
    from experiments.planning.code import own_code
    from experiments.planning.lock import read_lock
    from hkd.units import units

    entries, code = read_lock().entries, own_code()
    unlisted = [
        unit
        for unit, module in units().items()
        if unit not in entries or not entries[unit].holds(code.digest([module]), device)
    ]
    console = out()
    if not unlisted:
        console.print(Text(f"hkd/numerics.lock lists the code of all {len(units())} units as proved on {device}."))
        return 0
    shown = ", ".join(unlisted[:5]) + (f" and {len(unlisted) - 5} more" if len(unlisted) > 5 else "")
    console.print(Text(f"{len(unlisted)} units have code that hkd/numerics.lock does not list on {device}: {shown}."))
    console.print(Text(f"Their runs have new keys. `hkd numerics prove{'' if device == 'cpu' else ' --device cuda'}`"))
    console.print(Text("shows whether they compute what they did, and lists them."))
    return 1


@numerics_app.command(name="prove")
def prove_numerics(
    base: str | None = None,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    accept: bool = False,
    unreached: str | None = None,
    table: tuple[str, ...] = (),
) -> int:
    """Show that the library computes, bit for bit, what it did at a commit, and list its code in hkd/numerics.lock.

    Both sides carry out up to some 600 small runs here, 10 to 50 minutes on two cores; only what the edit can reach
    is run. Exit 1 where numbers differ or changed lines did not run: nothing is written then, and keys stay new.

    Args:
        base: git revision to compare with; the default is the last one whose lock lists all of its own code.
        device: kind of device to prove on.
        accept: raise the versions of units whose numbers differ: their runs get new keys, for good.
        unreached: why changed lines that no small run reaches move no digit; recorded in the lock.
        table: look at the runs of this table only (may be given several times); a quick look that writes nothing.
    """
    from experiments.planning.lock import PATH
    from experiments.proving.prove import is_settled, prove

    for name in table:
        lookup("table", name, dict.fromkeys(schema.table_ids()))
    console = out()

    def say(sentence: str) -> None:
        console.print(Text(sentence))

    proof = prove(base, device=device, accept=accept, unreached=unreached, tables=table, say=say)
    shown: dict[str, list[str]] = {}
    for unit, verdict in proof.verdicts.items():
        if unit in proof.raised:
            shown.setdefault("numbers differ, version raised", []).append(unit)
        elif not is_settled(verdict, proof.raised) or verdict.status == "new":
            shown.setdefault(verdict.status, []).append(unit)
    for status, units in shown.items():
        say(f"{status}: {', '.join(units)}")
    differences = dict.fromkeys(line for verdict in proof.verdicts.values() for line in verdict.differences)
    for line in list(differences)[:10]:
        say(f"  {line}")
    if len(differences) > 10:
        say(f"  and {len(differences) - 10} more")
    for place in dict.fromkeys(place for verdict in proof.verdicts.values() for place in verdict.unreached):
        say(f"  changed and run by no canary of a unit: {place}")
    proved = sum(is_settled(verdict, proof.raised) for verdict in proof.verdicts.values())
    say(
        f"{proved} of {len(proof.verdicts)} units settled by {proof.canaries} canaries in {clock(proof.seconds)}, "
        f"compared with {proof.base}."
    )
    if not table and proof.holds:
        proof.lock.write(PATH)
        say("hkd/numerics.lock lists the code as it is now.")
    return int(not proof.holds)
