"""Users of a running RocketMQ: the ACL of 4.9.x, and the users and policies of 5.x."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from brokerkit.testing.services.rocketmq_options import RocketMQAccount
from brokerkit.testing.services.rocketmq_wire import Login, request

__all__ = ["account_4", "delete_account", "set_account"]

#: org.apache.rocketmq.common.protocol.RequestCode of 4.9.x
_UPDATE_AND_CREATE_ACL_CONFIG = 50
_DELETE_ACL_CONFIG = 51

#: org.apache.rocketmq.remoting.protocol.RequestCode of 5.x
_AUTH_CREATE_USER = 3001
_AUTH_UPDATE_USER = 3002
_AUTH_DELETE_USER = 3003
_AUTH_GET_USER = 3004
_AUTH_CREATE_ACL = 3006
_AUTH_DELETE_ACL = 3008
_AUTH_GET_ACL = 3009

#: org.apache.rocketmq.common.action.Action of 5.x
_ACTIONS = {"PUB": "Pub", "SUB": "Sub", "GET": "Get"}


def set_account(broker: str, major: int, admin: Login, account: RocketMQAccount) -> None:
    """Make an account, or replace it, on the broker at "host:port" of a version."""
    if major < 5:
        # An account that is changed is changed in the file, which the broker reads every 5 s; a new one at once, unless
        # that reading, which takes no lock, is between the two (PlainPermissionManager.load).
        delete_account(broker, major, admin, account.access_key)
        fields = {
            name: ",".join(value) if isinstance(value, list) else str(value).lower() if name == "admin" else value
            for name, value in account_4(account).items()
            if value != []
        }
        request(broker, _UPDATE_AND_CREATE_ACL_CONFIG, fields, login=admin)
        return
    user = {
        "username": account.access_key,
        "password": account.secret_key,
        "userType": "Super" if account.admin else "Normal",
        "userStatus": "enable",
    }
    name = {"username": account.access_key}
    known = request(broker, _AUTH_GET_USER, name, login=admin).body
    code = _AUTH_UPDATE_USER if known else _AUTH_CREATE_USER
    request(broker, code, name, json.dumps(user).encode(), login=admin)
    # Updating a policy would leave what it does not mention.
    _delete_policies(broker, admin, account.access_key)
    entries = _entries(account)
    if entries:
        subject = f"User:{account.access_key}"
        policies = {"subject": subject, "policies": [{"policyType": "CUSTOM", "entries": entries}]}
        request(broker, _AUTH_CREATE_ACL, {"subject": subject}, json.dumps(policies).encode(), login=admin)


def delete_account(broker: str, major: int, admin: Login, access_key: str) -> None:
    """Delete an account on a broker.  No-op where it does not exist."""
    if major >= 5:
        _delete_policies(broker, admin, access_key)
        request(broker, _AUTH_DELETE_USER, {"username": access_key}, login=admin)
        return
    # 210 DELETE_ACL_CONFIG_FAILED: there is none.
    request(broker, _DELETE_ACL_CONFIG, {"accessKey": access_key}, login=admin, allowed=(210,))


def _delete_policies(broker: str, admin: Login, access_key: str) -> None:
    subject = {"subject": f"User:{access_key}"}
    # 16: there is no such user.
    if request(broker, _AUTH_GET_ACL, subject, login=admin, allowed=(16,)).body:
        request(broker, _AUTH_DELETE_ACL, subject, login=admin)


def _entries(account: RocketMQAccount) -> list[Mapping[str, Any]]:
    named: dict[str, str] = {f"Topic:{name}": allowed for name, allowed in account.topics.items()}
    named |= {f"Group:{name}": allowed for name, allowed in account.groups.items()}
    defaults = {"Topic:*": account.default_topic, "Group:*": account.default_group}
    named |= {resource: allowed for resource, allowed in defaults.items() if allowed}
    return [
        {
            "resource": resource,
            "actions": [_ACTIONS[each] for each in filter(None, allowed.split("|"))] or [*_ACTIONS.values()],
            "decision": "Allow" if allowed else "Deny",
        }
        for resource, allowed in named.items()
    ]


def account_4(account: RocketMQAccount) -> dict[str, Any]:
    """Return an account as plain_acl.yml of 4.9.x has it."""
    return {
        "accessKey": account.access_key,
        "secretKey": account.secret_key,
        "admin": account.admin,
        "defaultTopicPerm": _permission(account.default_topic),
        "defaultGroupPerm": _permission(account.default_group),
        "topicPerms": [f"{name}={_permission(allowed)}" for name, allowed in account.topics.items()],
        "groupPerms": [f"{name}={_permission(allowed)}" for name, allowed in account.groups.items()],
    }


def _permission(allowed: str) -> str:
    """Return what 4.9.x knows of a list of permissions."""
    return "|".join(each for each in allowed.split("|") if each in ("PUB", "SUB")) or "DENY"
