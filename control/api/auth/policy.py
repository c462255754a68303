"""Who may do what: oslo.policy with Glance's rule names, so that operators' policy files work.

Nothing is read while a request is decided: the file is read at the start and, when it has changed, by
`refresh`, in a thread. A file that has become wrong, or is gone, changes nothing: the rules stay.
"""

from __future__ import annotations

import logging
import re
import stat
from typing import TYPE_CHECKING, Final

from oslo_config import cfg
from oslo_policy import policy as oslo

from control.api.auth.files import read_file, state_of
from control.api.auth.rules import DEFAULT_RULES
from control.api.errors import ForbiddenError, PolicyFileError
from drivers.blocking import run_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from control.api.auth.caller import Caller

log = logging.getLogger(__name__)

_MOST_REMEMBERED: Final = 8192
_NAME_IN_CHECK: Final = re.compile(r"%\(([^)]*)\)")
_HINT: Final = "Write it as YAML: a rule's name, a colon, and its check in quotes."


class Policy:
    """Decides by rules. Decisions are remembered, since one takes oslo.policy a tenth of a millisecond and a
    page of images needs a thousand: what a check reads of a target is known from its text.
    """

    def __init__(self, policy_file: str | None = None) -> None:
        """Reads the file (blocks). Raises `PolicyFileError`."""
        self._file = policy_file
        self._state = None if policy_file is None else state_of(policy_file)
        self._rules = _Rules(_read(policy_file))

    def enforce(self, caller: Caller, rule: str, target: Mapping[str, object] | None = None) -> None:
        """Raises `ForbiddenError` when the caller may not; LookupError when there is no such rule."""
        if not self.allows(caller, rule, target):
            raise ForbiddenError(f"The policy {rule!r} does not let you do this.")

    def allows(self, caller: Caller, rule: str, target: Mapping[str, object] | None = None) -> bool:
        """Whether the caller may. Raises LookupError when there is no such rule: oslo.policy would take
        `default` then, which lets everybody.
        """
        if rule not in DEFAULT_RULES:
            raise LookupError(f"no policy rule {rule!r}")
        if caller.is_operator:
            return True
        return self._rules.allow(caller, rule, {} if target is None else target)

    def is_admin(self, caller: Caller) -> bool:
        """Whether the caller sees every project's images."""
        return self.allows(caller, "context_is_admin")

    async def refresh(self) -> bool:
        """Read the file again if it is another one or has been written to; says whether there are new rules.
        What is wrong with the file is logged.
        """
        if self._file is None:
            return False
        wrong: PolicyFileError | None = None
        try:
            state = await run_blocking(state_of, self._file)
            if state == self._state:
                return False
            self._state = state
            self._rules = await run_blocking(_load, self._file)
        except PolicyFileError as error:
            wrong = error
        if wrong is not None:
            log.error("The policy stays as it was: %s", wrong)
            return False
        log.info("The policy file %s was read again", self._file)
        return True


class _Rules:
    """The rules of one reading of the file, and what was decided by them."""

    def __init__(self, written: Mapping[str, str]) -> None:
        texts = {**DEFAULT_RULES, **written}
        rules = oslo.Rules.from_dict(texts)
        _check(rules, texts)
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[], default_config_dirs=[])
        self._enforcer = oslo.Enforcer(conf, use_conf=False)
        self._enforcer.set_rules(rules, use_conf=False)
        text = " ".join(str(check) for check in rules.values())
        self._used = tuple(sorted(set(_NAME_IN_CHECK.findall(text))))
        self._decided: dict[tuple[object, ...], bool] = {}

    def allow(self, caller: Caller, rule: str, target: Mapping[str, object]) -> bool:
        key = (rule, caller, *(target.get(name, KeyError) for name in self._used))
        found = self._decided.get(key)
        if found is None:
            found = bool(self._enforcer.enforce(rule, target, _credentials(caller)))
            if len(self._decided) >= _MOST_REMEMBERED:
                self._decided.clear()
            self._decided[key] = found
        return found


def _check(rules: oslo.Rules, texts: Mapping[str, str]) -> None:
    """What oslo.policy finds out only when it is too late: checks that it does not understand, rules that are
    not there (it takes `default`, which lets everybody), circles. Checks that ask another server would hold
    up everyone.
    """
    mentioned = set[str]()
    for name, check in rules.items():
        if str(check) == "!" and texts[name] != "!":
            raise PolicyFileError(f"{name!r} has no check that can be understood.", hint=_HINT)
        for leaf in _leaves(check):
            if isinstance(leaf, oslo.RuleCheck):
                mentioned.add(leaf.match)
                if leaf.match not in rules:
                    raise PolicyFileError(f"{name!r} names the rule {leaf.match!r}, which there is not.")
            elif type(leaf).__module__ != oslo.RuleCheck.__module__:
                raise PolicyFileError(
                    f"{name!r} asks another server: {type(leaf).__name__} is not supported.",
                    hint="Use roles, projects and the image's attributes.",
                )
        _refuse_circle(name, rules, ())
    for name in sorted(set(texts) - set(DEFAULT_RULES) - mentioned):
        log.warning("The policy file sets %r, which nothing asks for", name)


def _credentials(caller: Caller) -> dict[str, object]:
    """A caller as checks see one, under the old names as well. What is not known is left out: an image
    without an owner is not that of a caller without a project.
    """
    known = {
        "user_id": caller.user_id,
        "user": caller.user_id,
        "project_id": caller.project_id,
        "tenant": caller.project_id,
        "user_domain_id": caller.user_domain_id,
        "project_domain_id": caller.project_domain_id,
    }
    return {
        **{name: value for name, value in known.items() if value is not None},
        "roles": sorted(caller.roles),
        "service_roles": sorted(caller.service_roles),
        "is_admin": caller.is_admin,
    }


def _leaves(check: object) -> Iterator[object]:
    """The checks that are not made of others."""
    inner = getattr(check, "rules", None)
    if inner is None and isinstance(check, oslo.NotCheck):
        inner = [check.rule]
    if inner is None:
        yield check
        return
    for one in inner:
        yield from _leaves(one)


def _refuse_circle(name: str, rules: oslo.Rules, above: tuple[str, ...]) -> None:
    if name in above:
        raise PolicyFileError(f"{name!r} leads back to itself.")
    for leaf in _leaves(rules.get(name)):
        if isinstance(leaf, oslo.RuleCheck):
            _refuse_circle(leaf.match, rules, (*above, name))


def _load(path: str) -> _Rules:
    return _Rules(_read(path))


def _read(path: str | None) -> Mapping[str, str]:
    """What the file says. Raises `PolicyFileError`."""
    if path is None:
        return {}
    content = read_file(path, PolicyFileError, what="policy file", refused_mode=stat.S_IWOTH)
    try:
        found: object = oslo.parse_file_contents(content)
    except ValueError as error:
        raise PolicyFileError(f"The policy file {path} is no YAML.", hint=_HINT) from error
    if not isinstance(found, dict):
        raise PolicyFileError(f"The policy file {path} is no table of rules.", hint=_HINT)
    for name, text in found.items():
        # oslo.policy takes null and the empty list of its oldest form for "everybody".
        if not isinstance(name, str) or not isinstance(text, str):
            raise PolicyFileError(f"The policy file {path}: {name!r} has no check.", hint=_HINT)
    return {name: text.strip() for name, text in found.items()}
