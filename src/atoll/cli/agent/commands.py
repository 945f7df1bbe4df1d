"""The commands of `atoll agent`."""

import typer

from atoll.cli.agent import enrolling, installing, renewing, state

app = typer.Typer(help="Enrol agents and see how they are.", no_args_is_help=True)
app.command("invite")(enrolling.invite)
app.command("withdraw")(renewing.withdraw)
app.command("serve-enrolment")(enrolling.serve_enrolment)
app.command("enroll")(enrolling.enroll)
app.command("package")(installing.package)
app.command("list")(state.list_agents)
app.command("check")(state.check)
app.command("renew")(renewing.renew)
app.command("renew-authority")(renewing.renew_authority)
app.command("forget")(renewing.forget)
