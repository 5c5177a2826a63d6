"""The routes of cases, the watch list and the audit."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from jobs.cases.documents import CaseDocument, CaseSummary, JudgementEntry, NoteEntry
from jobs.serve.case_service import CaseService
from jobs.serve.dependencies import require_role
from jobs.serve.schemas import (
    FAILURES,
    AuditList,
    CaseChange,
    CaseList,
    CompanionSearch,
    CompanionsResponse,
    JourneyResponse,
    NewCase,
    NewJudgement,
    NewNote,
    NewProbe,
    ShownList,
    WatchList,
    WatchSwitch,
)

CaseId = Annotated[int, "the id of a case, from the list"]


def case_routes(service: CaseService) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/api", tags=["cases"], responses=FAILURES)
    book = service.casebook

    @router.get("/cases", summary="All cases")
    def cases(request: Request) -> CaseList:
        require_role(request, "judge")
        return CaseList(cases=book.cases())

    @router.post("/cases", summary="Create a case")
    def create(request: Request, case: NewCase) -> CaseSummary:
        user = require_role(request, "judge")
        return book.create(case.number, case.title, user.name)

    @router.get("/cases/{case_id}", summary="A case with all that it holds")
    def case(request: Request, case_id: int) -> CaseDocument:
        require_role(request, "judge")
        return book.read(case_id)

    @router.patch("/cases/{case_id}", summary="Rename, close or open a case")
    def change(request: Request, case_id: int, change: CaseChange) -> CaseDocument:
        require_role(request, "judge")
        book.set_state(case_id, change.state, change.title)
        return book.read(case_id)

    @router.post("/cases/{case_id}/probes", summary="Add a probe to a case")
    def add_probe(request: Request, case_id: int, probe: NewProbe) -> CaseDocument:
        user = require_role(request, "judge")
        book.add_probe(case_id, probe.spec, user.name)
        return book.read(case_id)

    @router.post("/cases/{case_id}/probes/remove", summary="Take a probe out of a case")
    def remove_probe(request: Request, case_id: int, probe: NewProbe) -> CaseDocument:
        require_role(request, "judge")
        book.remove_probe(case_id, probe.spec)
        return book.read(case_id)

    @router.post("/cases/{case_id}/judgements", summary="Confirm or reject a crop, or be unsure")
    def judge(request: Request, case_id: int, judgement: NewJudgement) -> JudgementEntry:
        return service.judge(case_id, judgement, require_role(request, "judge"))

    @router.post("/cases/{case_id}/notes", summary="Add a note to a case")
    def add_note(request: Request, case_id: int, note: NewNote) -> NoteEntry:
        user = require_role(request, "judge")
        return book.add_note(case_id, note.text, user.name)

    @router.put("/cases/{case_id}/watch", summary="Watch the confirmed vehicle of a case, or stop")
    def watch(request: Request, case_id: int, switch: WatchSwitch) -> CaseDocument:
        user = require_role(request, "judge")
        book.watch(case_id, user.name, on=switch.on)
        return book.read(case_id)

    @router.get("/cases/{case_id}/journey", summary="The confirmed crops in order of time")
    def journey(request: Request, case_id: int) -> JourneyResponse:
        require_role(request, "judge")
        return service.journey(case_id)

    @router.post("/cases/{case_id}/companions", summary="Vehicles near the stops of the journey")
    def companions(request: Request, case_id: int, wanted: CompanionSearch) -> CompanionsResponse:
        user = require_role(request, "judge")
        return service.companions(
            case_id, user, window_seconds=wanted.window_seconds, max_distance=wanted.max_distance
        )

    @router.post(
        "/cases/{case_id}/export.zip",
        summary="A case with its images, in a ZIP file that `clvr case verify` checks",
        response_class=Response,
    )
    def export(request: Request, case_id: int) -> Response:
        user = require_role(request, "judge")
        name, data = service.export(case_id, user)
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        return Response(data, media_type="application/zip", headers=headers)

    @router.get("/watch", summary="New crops of watched vehicles")
    def watch_list(request: Request) -> WatchList:
        require_role(request, "judge")
        return WatchList(hits=book.watch_hits())

    @router.get("/audit", summary="Who searched, when, why and with what", tags=["audit"])
    def audit(
        request: Request,
        user: Annotated[str | None, Query(max_length=200)] = None,
        case_number: Annotated[str | None, Query(max_length=200)] = None,
        limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    ) -> AuditList:
        require_role(request, "administer")
        return AuditList(searches=service.audit.searches(user=user, case_number=case_number, limit=limit))

    @router.get("/audit/{search_id}", summary="What a search showed", tags=["audit"])
    def shown(request: Request, search_id: str) -> ShownList:
        require_role(request, "administer")
        return ShownList(shown=service.audit.shown(search_id))

    return router
