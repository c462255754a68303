"""The policy's rules and their defaults: Glance's names for what Images API clients do, ours for `/v1`.

The defaults are those of Glance 33 with `enforce_new_defaults`: roles of Keystone's (admin, member, reader,
service), and projects kept apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_ADMIN = "rule:context_is_admin"
_SERVICE = "rule:service_api"
_OURS = "project_id:%(project_id)s"
_SHARED_WITH_US = "project_id:%(member_id)s"
_OPEN = "'community':%(visibility)s or 'public':%(visibility)s or 'shared':%(visibility)s"

_MEMBER = f"{_ADMIN} or (role:member and {_OURS})"
_READER = f"{_ADMIN} or (role:reader and {_OURS})"
_LOOK = f"{_ADMIN} or (role:reader and ({_OURS} or {_SHARED_WITH_US} or {_OPEN}))"
_DOWNLOAD = f"{_ADMIN} or (role:member and ({_OURS} or {_SHARED_WITH_US} or {_OPEN}))"
_LOOK_AT_MEMBERS = f"{_ADMIN} or (role:reader and ({_OURS} or {_SHARED_WITH_US}))"
_NAMESPACE = f"{_ADMIN} or (role:reader and ({_OURS} or 'public':%(visibility)s))"

_ABOUT_IMAGES: Final = {
    "default": "",
    "context_is_admin": "role:admin",
    "service_api": "role:service or role:admin",
    "add_image": f"{_ADMIN} or (role:member and {_OURS} and project_id:%(owner)s)",
    "get_image": _LOOK,
    "get_images": _READER,
    "modify_image": _MEMBER,
    "delete_image": _MEMBER,
    "publicize_image": _ADMIN,
    "communitize_image": _MEMBER,
    "upload_image": _MEMBER,
    "download_image": _DOWNLOAD,
    "download_from_store": _DOWNLOAD,
    "copy_image": _ADMIN,
    "deactivate": _MEMBER,
    "reactivate": _MEMBER,
    "get_image_location": _READER,
    "set_image_location": _MEMBER,
    "delete_image_location": _ADMIN,
    "add_image_location": f"{_SERVICE} or (role:member and {_OURS} and project_id:%(owner)s)",
    "fetch_image_location": _SERVICE,
    "add_member": _MEMBER,
    "delete_member": _MEMBER,
    "get_member": _LOOK_AT_MEMBERS,
    "get_members": _LOOK_AT_MEMBERS,
    "modify_member": f"{_ADMIN} or (role:member and {_SHARED_WITH_US})",
    "stores_info_detail": f"{_ADMIN} or {_SERVICE}",
    "calculate_hash": _ADMIN,
    "get_task": "rule:default",
    "get_tasks": "rule:default",
    "add_task": "rule:default",
    "modify_task": "rule:default",
    "tasks_api_access": _ADMIN,
}

_NOT_OURS_TO_ASK: Final = {
    # No handler asks for these; operators' files may set them all the same.
    **dict.fromkeys(
        (
            "manage_image_cache",
            "cache_image",
            "cache_list",
            "cache_delete",
            "cache_clean",
            "cache_prune",
            "list_cached_nodes",
        ),
        _ADMIN,
    ),
    "metadef_default": "",
    "metadef_admin": _ADMIN,
    "get_metadef_namespaces": _READER,
    **dict.fromkeys(
        (
            "get_metadef_namespace",
            "get_metadef_object",
            "get_metadef_objects",
            "list_metadef_resource_types",
            "get_metadef_resource_type",
            "get_metadef_property",
            "get_metadef_properties",
            "get_metadef_tag",
            "get_metadef_tags",
        ),
        _NAMESPACE,
    ),
    **dict.fromkeys(
        (
            "modify_metadef_namespace",
            "add_metadef_namespace",
            "delete_metadef_namespace",
            "modify_metadef_object",
            "add_metadef_object",
            "delete_metadef_object",
            "add_metadef_resource_type_association",
            "remove_metadef_resource_type_association",
            "modify_metadef_property",
            "add_metadef_property",
            "remove_metadef_property",
            "modify_metadef_tag",
            "add_metadef_tag",
            "add_metadef_tags",
            "delete_metadef_tag",
            "delete_metadef_tags",
        ),
        "rule:metadef_admin",
    ),
}

_ABOUT_US: Final = {
    "glissade:read": _SERVICE,
    "glissade:data": _ADMIN,
    "glissade:submit": _SERVICE,
    "glissade:cancel": _SERVICE,
    "glissade:delete-source": _ADMIN,
    "glissade:admin": _ADMIN,
}

DEFAULT_RULES: Final[Mapping[str, str]] = {**_ABOUT_IMAGES, **_NOT_OURS_TO_ASK, **_ABOUT_US}
"""Every rule that the API may ask for; a policy file replaces some of them, and may add rules for its own
use.
"""
