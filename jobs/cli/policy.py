"""``clearance policy …``: check a policy, show what is in force and where it comes from, compare two."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.arguments import AsJson
from jobs.console import grid, make_console, say, say_json, say_note
from jobs.group import group

app = group("Which pictures are released: check, show, compare policies.")
PolicyName = Annotated[
    str,
    typer.Argument(
        metavar="POLICY", help="A policy that ships, a policy file, a run file, or a run folder.", show_default=False
    ),
]


@app.command("check", epilog="Example: clearance policy check my-policy.toml")
def policy_check(policy: PolicyName, json: AsJson = False) -> None:
    """Read a policy as a run would, and name what its owner may not have meant. Exits with 2 if it is refused."""
    from jobs.policies import named, slips
    from pipeline.notes import Note
    from pipeline.policy import policy_digest

    found = named(policy, Path.cwd())
    if found.policy is None:
        if json:
            return say_json({"ok": True, "policy": found.source, "notes": []})
        return say(f"{found.source}: a run was drawn under this policy; `clearance policy show` shows it")
    notes = slips(found.policy, Path(found.source).parent)
    if json:
        return say_json({"ok": True, "policy": found.source, "sha256": policy_digest(found.policy), "notes": notes})
    for one in notes:
        say_note(Note("policy", one))
    say(f"{found.source}: can be used, {len(notes) or 'no'} notes; digest {policy_digest(found.policy)}")
    return None


@app.command("show", epilog="Example: clearance policy show my-policy.toml")
def policy_show(policy: PolicyName, json: AsJson = False) -> None:
    """Show every value that is in force and where it comes from; first what differs from the value without the key."""
    from jobs.policies import named, values

    found = named(policy, Path.cwd())
    shown = values(found)
    if json:
        return say_json({"policy": found.source, "values": [asdict(one) for one in shown]})
    say(f"policy {found.source}")
    for title, differs in (("other than without the key", True), ("as without the key", False)):
        table = grid()
        for one in (one for one in shown if one.differs is differs):
            table.add_row(f"  {one.key}", f"{one.value}  ({one.source})")
        if table.row_count:
            say(f"{title}:")
            make_console().print(table)
    return None


@app.command("diff", epilog="Example: clearance policy diff runs/monday my-policy.toml")
def policy_diff(before: PolicyName, now: PolicyName, json: AsJson = False) -> None:
    """Compare the rules of two policies, or of a policy and a finished run. Exits with 1 if they differ."""
    from jobs.policies import changes, named

    one, other = named(before, Path.cwd()), named(now, Path.cwd())
    found = changes(one, other)
    if json:
        say_json({"before": one.source, "now": other.source, "same_rules": not found, "changes": found})
    elif not found:
        say(f"the same rules: {one.source} and {other.source}")
    else:
        from rich.table import Table

        table = Table("rule", f"before: {one.source}", f"now: {other.source}")
        for change in found:
            table.add_row(change["key"], change["before"], change["now"])
        make_console().print(table)
    if found:
        raise typer.Exit(1)
