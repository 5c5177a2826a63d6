"""The user of a request, and what their role permits."""

from fastapi import Request

from infra.errors import ClvrError
from jobs.serve.users import Role, User


class Forbidden(ClvrError):
    """The role of the user does not permit it."""


_ROLE_NOUNS: dict[Role, str] = {
    "search": "search",
    "judge": "work on cases",
    "administer": "read the audit",
}


def user_of(request: Request) -> User:
    """Return the user, whom access control has put into the request."""
    user: User = request.scope["clvr.user"]
    return user


def require_role(request: Request, role: Role) -> User:
    """Return the user. Raises Forbidden without the role."""
    user = user_of(request)
    if role not in user.roles:
        raise Forbidden(
            f"{user.name} may not {_ROLE_NOUNS[role]} here", remedy="Ask an administrator for the role."
        )
    return user
