"""The command line on a page of matches makes that page again."""

import shlex
from pathlib import Path

from typer.testing import CliRunner

from jobs.cli.app import app
from jobs.search.page import search_command
from jobs.search.search import RulesRequest, SearchRequest


def test_every_rule_of_a_request_is_in_the_command_and_its_flags_exist() -> None:
    rules = RulesRequest(
        top=5,
        cameras=("001", "a b"),
        not_cameras=("002",),
        since="2026-01-05",
        models=("Van",),
        same_camera=True,
        every_crop=True,
        max_distance=0.5,
        camera_file="cameras.csv",
        rerank=True,
        not_colors=("red",),
        min_body_type_confidence=0.5,
    )
    request = SearchRequest(("probe.jpg",), None, rules, "001@2026-01-05", Path("page.html"))
    command = search_command(request.images, request.options())
    assert command.startswith("clvr search probe.jpg --top 5 --camera 001 --camera 'a b' --not-camera 002 ")
    assert command.endswith("--sighting 001@2026-01-05 --html page.html")
    flags = {word for word in shlex.split(command) if word.startswith("--")}
    assert len(flags) == 14
    listed = CliRunner().invoke(app, ["search", "--help"], terminal_width=200).stdout
    assert all(flag in listed for flag in flags)
