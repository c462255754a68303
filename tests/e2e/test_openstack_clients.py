"""Unmodified OpenStack clients against the daemon, with a real Keystone and with our own tokens: every
command that people use.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from control.api.auth.tokens import new_token
from control.sandbox import Sandbox
from tests.e2e.openstack import Client, needs_clients
from tests.e2e.test_bad_input import HttpThread
from tests.fakes.http_server import HttpServer, Page
from tests.services.processes import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services.keystone import Keystone

# Dozens of commands each, and every one takes seconds to load.
pytestmark = [pytest.mark.service("keystone"), needs_clients, pytest.mark.timeout(1200)]

MIB = 1024 * 1024
DATA = random.Random(7).randbytes(3 * MIB + 11)
SHA512 = hashlib.sha512(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """The daemon and its users: `admin`, `service` (of Nova, say), `demo` and `other`, two ordinary ones of
    different projects.
    """

    sandbox: Sandbox
    admin: Client
    service: Client
    demo: Client
    other: Client
    other_project: str
    has_keystone: bool
    web: HttpServer
    file: Path

    def image(self, *more: str, by: Client | None = None) -> str:
        """A new image with DATA, by its owner; its id."""
        shown = (by or self.demo).openstack("create", "--file", self.file, *_RAW, *more, "an-image")
        assert shown["status"] == "active"
        return str(shown["id"])

    def until(self, image_id: str, by: Client | None = None, **wanted: object) -> Any:
        """The image by `openstack image show`, as soon as it has these values."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            shown = (by or self.admin).openstack("show", image_id)
            if all(_field(shown, name) == value for name, value in wanted.items()):
                return shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)


_RAW = ("--disk-format", "raw", "--container-format", "bare")
_PATIENCE_S = 150.0


def _field(shown: Any, name: str) -> Any:
    return shown.get(name, shown.get("properties", {}).get(name))


_PEOPLE = {
    "admin": ("admin", "ops"),
    "service": ("admin,service", "service"),
    "demo": ("member", "ours"),
    "other": ("member", "theirs"),
}
"""Roles and project of those who have tokens of the daemon's."""


@dataclass(frozen=True, kw_only=True)
class _Door:
    """How people come in: what the daemon's configuration says of it, and their clients."""

    api: dict[str, Any]
    people: dict[str, Client]
    other_project: str


def _by_keystone(keystone: Keystone, url: str, base: Path) -> _Door:
    user = keystone.service
    password = base / "password"
    password.touch(mode=0o600)
    password.write_text(user.password)
    keystone.add_to_catalogue("image", url)
    known = {
        "admin": keystone.admin,
        "service": keystone.service,
        "demo": keystone.demo,
        "other": keystone.images,
    }
    return _Door(
        api={
            "keystone": {
                "auth_url": keystone.auth_url,
                "user": user.name,
                "password": {"file": str(password)},
                "project": user.project,
                "cache_s": 1,
            }
        },
        people={name: Client.of(keystone, one, base / name) for name, one in known.items()},
        other_project=keystone.project_id(keystone.images),
    )


def _by_tokens(url: str, base: Path) -> _Door:
    tokens = {
        name: new_token(name=name, roles=roles.split(","), project=project, expires_at=None)
        for name, (roles, project) in _PEOPLE.items()
    }
    file = base / "tokens"
    file.touch(mode=0o600)
    file.write_text("".join(f"{one.line}\n" for one in tokens.values()))
    return _Door(
        api={"tokens_file": str(file)},
        people={name: Client.with_token(url, one.token, base / name) for name, one in tokens.items()},
        other_project=_PEOPLE["other"][1],
    )


@pytest.fixture(scope="module", params=["keystone", "tokens"])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    base = tmp_path_factory.mktemp("cloud")
    (port,) = free_ports(1)
    roots = {name: base / f"store-{name}" for name in ("fast", "slow", "staging")}
    for root in roots.values():
        root.mkdir()
    file = base / "image.raw"
    file.write_bytes(DATA)
    url = f"http://127.0.0.1:{port}"
    has_keystone = request.param == "keystone"
    if has_keystone:
        door = _by_keystone(request.getfixturevalue("keystone"), url, base)
    else:
        door = _by_tokens(url, base)
    with HttpThread() as web:
        web.serve("/image", Page(body=DATA, etag='"one"'))
        sandbox = Sandbox(
            directory=base / "daemon",
            stores={
                **{name: {"type": "file", "directories": [str(root)]} for name, root in roots.items()},
                "web": {
                    "type": "http",
                    "schemes": ["http"],
                    "ports": [web.port],
                    "allow_cidrs": ["127.0.0.0/8"],
                },
            },
            sections={
                "api": {"listen": [f"127.0.0.1:{port}"], **door.api},
                "images": {
                    "staging_store": "staging",
                    "quotas": {"image_count_total": 77, "image_size_total": "9G"},
                },
                "import": {
                    "allow_http": True,
                    "ports": [web.port],
                    "allow_private_addresses": ["127.0.0.1/32"],
                },
            },
            ready_timeout_s=120,
            stop_timeout_s=60,
        )
        with sandbox:
            yield Cloud(
                sandbox=sandbox,
                **door.people,
                other_project=door.other_project,
                has_keystone=has_keystone,
                web=web,
                file=file,
            )


def test_an_image_from_its_creation_to_its_end(cloud: Cloud, tmp_path: Path) -> None:
    image_id = cloud.image("--property", "colour=red", "--tag", "small")
    shown = cloud.demo.openstack("show", "an-image")
    assert (shown["id"], shown["checksum"], shown["size"]) == (image_id, MD5, len(DATA))
    assert (_field(shown, "os_hash_algo"), _field(shown, "os_hash_value")) == ("sha512", SHA512)
    assert (_field(shown, "colour"), shown["tags"], _field(shown, "stores")) == ("red", ["small"], "fast")
    assert image_id in {one["ID"] for one in cloud.demo.openstack("list")}
    assert image_id in {one["ID"] for one in cloud.demo.openstack("list", "--tag", "small", "--long")}
    assert cloud.demo.openstack("list", "--name", "no-such-name") == []
    # The client holds what it gets against the recorded digest.
    cloud.demo.quietly("save", "--file", tmp_path / "saved", image_id)
    assert (tmp_path / "saved").read_bytes() == DATA
    cloud.demo.quietly("set", "--name", "renamed", "--property", "colour=blue", "--min-disk", "2", image_id)
    cloud.demo.quietly("set", "--protected", image_id)
    assert cloud.demo.try_("openstack", "image", "delete", image_id).returncode != 0
    cloud.demo.quietly("set", "--unprotected", image_id)
    cloud.demo.quietly("unset", "--property", "colour", "--tag", "small", image_id)
    shown = cloud.demo.openstack("show", image_id)
    assert (shown["name"], shown["min_disk"], shown["tags"], _field(shown, "colour")) == (
        "renamed",
        2,
        [],
        None,
    )
    cloud.demo.quietly("set", "--deactivate", image_id)
    refused = cloud.demo.try_("openstack", "image", "save", "--file", tmp_path / "no", image_id)
    assert refused.returncode != 0
    cloud.demo.quietly("set", "--activate", image_id)
    cloud.demo.quietly("delete", image_id)
    gone = cloud.demo.try_("openstack", "image", "show", image_id)
    assert gone.returncode != 0
    assert "No Image found" in gone.stderr


def test_projects_are_kept_apart_and_share_by_membership(cloud: Cloud) -> None:
    image_id = cloud.image()
    assert cloud.other.try_("openstack", "image", "show", image_id).returncode != 0
    assert cloud.other.try_("openstack", "image", "delete", image_id).returncode != 0
    if cloud.has_keystone:
        member = cloud.demo.openstack("add", "project", image_id, cloud.other_project)
        assert member["status"] == "pending"
    else:  # `openstack` asks Keystone what a project is called.
        assert "pending" in cloud.demo.glance("member-create", image_id, cloud.other_project)
    assert cloud.other.openstack("show", image_id)["id"] == image_id
    assert image_id not in {one["ID"] for one in cloud.other.openstack("list")}
    if cloud.has_keystone:
        cloud.other.quietly("set", "--accept", image_id)
    else:
        cloud.other.glance("member-update", image_id, cloud.other_project, "accepted")
    assert image_id in {one["ID"] for one in cloud.other.openstack("list")}
    listed = cloud.demo.openstack("member", "list", image_id)
    assert [(one["Member ID"], one["Status"]) for one in listed] == [(cloud.other_project, "accepted")]
    assert cloud.other.try_("openstack", "image", "set", "--name", "mine", image_id).returncode != 0
    assert cloud.demo.try_("openstack", "image", "set", "--public", image_id).returncode != 0
    if cloud.has_keystone:
        cloud.demo.quietly("remove", "project", image_id, cloud.other_project)
    else:
        cloud.demo.glance("member-delete", image_id, cloud.other_project)
    assert cloud.other.try_("openstack", "image", "show", image_id).returncode != 0
    cloud.demo.quietly("set", "--community", image_id)
    assert image_id in {one["ID"] for one in cloud.other.openstack("list", "--community")}
    cloud.admin.quietly("set", "--public", image_id)
    assert image_id in {one["ID"] for one in cloud.other.openstack("list", "--public")}
    cloud.demo.quietly("delete", image_id)


def test_stores_and_imports_by_openstack(cloud: Cloud) -> None:
    assert "web-download" in json.dumps(cloud.demo.openstack("import", "info"))
    stores = {one["ID"] for one in cloud.demo.openstack("stores", "list")}
    assert stores >= {"fast", "slow", "web"}
    assert "data_dir" in json.dumps(cloud.admin.openstack("stores", "list", "--detail"))
    shown = cloud.demo.openstack("create", *_RAW, "imported")
    image_id = str(shown["id"])
    assert shown["status"] == "queued"
    cloud.demo.run(
        "openstack", "image", "import", image_id, "--method", "web-download",
        "--uri", cloud.web.url("/image"), "--store", "fast",
    )  # fmt: skip
    shown = cloud.until(image_id, cloud.demo, status="active")
    assert shown["checksum"] == MD5
    cloud.admin.run("openstack", "image", "import", image_id, "--method", "copy-image", "--store", "slow")
    cloud.until(image_id, stores="fast,slow", os_glance_importing_to_stores="")
    cloud.admin.quietly("delete", "--store", "fast", image_id)
    cloud.until(image_id, stores="slow")
    listed = cloud.admin.openstack("task", "list")
    shown = cloud.admin.openstack("task", "show", listed[0]["ID"])
    assert (shown["status"], shown["input"]["image_id"]) == ("success", image_id)
    cloud.demo.quietly("delete", image_id)


def test_the_command_line_of_glance(cloud: Cloud, tmp_path: Path) -> None:
    glance = cloud.demo.glance
    said = glance(
        "image-create", *_RAW, "--name", "by-glance", "--property", "colour=red", "--file", cloud.file
    )
    image_id = _row(said, "id")
    assert (_row(said, "status"), _row(said, "checksum"), _row(said, "colour")) == ("active", MD5, "red")
    assert "by-glance" in glance("image-list")
    assert SHA512.startswith(_row(glance("image-show", image_id), "os_hash_value"))  # It is folded.
    assert (
        _row(glance("image-update", image_id, "--name", "other", "--property", "colour=blue"), "name")
        == "other"
    )
    assert "colour" not in glance("image-update", image_id, "--remove-property", "colour")
    glance("image-download", "--file", tmp_path / "saved", image_id)
    assert (tmp_path / "saved").read_bytes() == DATA
    glance("image-tag-update", image_id, "a-tag")
    assert "a-tag" in glance("image-show", image_id)
    glance("image-tag-delete", image_id, "a-tag")
    glance("image-deactivate", image_id)
    assert _row(glance("image-show", image_id), "status") == "deactivated"
    glance("image-reactivate", image_id)
    assert cloud.other_project in glance("member-create", image_id, cloud.other_project)
    assert "pending" in glance("member-list", "--image-id", image_id)
    cloud.other.glance("member-update", image_id, cloud.other_project, "accepted")
    glance("member-delete", image_id, cloud.other_project)
    assert "fast" in glance("stores-info")
    assert "data_dir" in cloud.admin.glance("stores-info", "--detail")
    assert "copy-image" in glance("import-info")
    used = glance("usage")
    assert re.search(r"\| image_count_total +\| 77 +\| 1 +\|", used), used
    assert re.search(r"\| image_size_total +\| 9216 +\| 3 +\|", used), used
    cloud.admin.glance("image-import", image_id, "--import-method", "copy-image", "--stores", "slow")
    cloud.until(image_id, stores="fast,slow")
    deadline = time.monotonic() + _PATIENCE_S
    while "success" not in (said := glance("image-tasks", image_id)):  # First the image has its bytes.
        assert time.monotonic() < deadline, said
    cloud.admin.glance("stores-delete", "--store", "slow", image_id)
    cloud.until(image_id, stores="fast")
    assert "colour" not in glance("explain", "image")
    glance("image-delete", image_id)
    assert cloud.demo.try_("glance", "image-show", image_id).returncode != 0


def test_glance_creates_by_web_download(cloud: Cloud) -> None:
    said = cloud.demo.glance(
        "image-create-via-import", *_RAW, "--name", "downloaded", "--import-method", "web-download",
        "--uri", cloud.web.url("/image"),
    )  # fmt: skip
    image_id = _row(said, "id")
    cloud.until(image_id, cloud.demo, status="active", checksum=MD5)
    cloud.demo.glance("image-delete", image_id)


def test_images_of_another_region_are_imported(cloud: Cloud) -> None:
    """The other region is this one: what matters is what the clients send."""
    theirs = cloud.image("--property", "hw_disk_bus=virtio")
    method = "glance-download"
    if not cloud.has_keystone:
        # Without Keystone there is no catalogue that says where the other one is.
        ours = _row(cloud.demo.glance("image-create", *_RAW, "--name", "fetched"), "id")
        assert method not in cloud.demo.glance("import-info")
        remote = ("--remote-region", "RegionOne", "--remote-image-id", theirs)
        refused = cloud.demo.try_("glance", "image-import", ours, "--import-method", method, *remote)
        assert refused.returncode != 0
        assert method in refused.stderr
        cloud.demo.quietly("delete", ours, theirs)
        return
    assert method in json.dumps(cloud.demo.openstack("import", "info"))
    first = _row(
        cloud.demo.glance(
            "image-create-via-import", *_RAW, "--name", "fetched", "--import-method", method,
            "--remote-region", "RegionOne", "--remote-image-id", theirs,
        ),
        "id",
    )  # fmt: skip
    shown = cloud.until(first, cloud.demo, status="active", checksum=MD5)
    assert _field(shown, "hw_disk_bus") == "virtio"
    second = cloud.demo.openstack("create", *_RAW, "fetched-too")["id"]
    # Without the interface openstacksdk names neither region nor image, and says nothing of the 400.
    cloud.demo.quietly(
        "import", second, "--method", method, "--remote-region", "RegionOne", "--remote-image", theirs,
        "--remote-service-interface", "public",
    )  # fmt: skip
    cloud.until(second, cloud.demo, status="active", checksum=MD5)
    cloud.demo.quietly("delete", first, second, theirs)


def test_what_is_staged_is_imported(cloud: Cloud) -> None:
    glance = cloud.demo.glance
    direct = ("--import-method", "glance-direct")
    assert "glance-direct" in str(cloud.demo.openstack("import", "info"))
    assert "staging" not in glance("stores-info")
    said = glance("image-create-via-import", *_RAW, *direct, "--name", "at-once", "--file", str(cloud.file))
    first = _row(said, "id")
    cloud.until(first, cloud.demo, status="active", checksum=MD5, os_hash_value=SHA512)
    second = _row(glance("image-create", *_RAW, "--name", "in-steps"), "id")
    glance("image-stage", "--file", str(cloud.file), second)
    assert _row(glance("image-show", second), "status") == "uploading"
    glance("image-import", second, *direct, "--stores", "fast,slow")
    cloud.until(second, cloud.demo, status="active", checksum=MD5, stores="fast,slow")
    made = cloud.demo.openstack("create", "--import", "--file", cloud.file, *_RAW, "by-openstack")
    cloud.until(made["id"], cloud.demo, status="active", checksum=MD5)
    third = _row(glance("image-create", *_RAW, "--name", "staged"), "id")
    cloud.demo.quietly("stage", "--file", cloud.file, third)
    cloud.demo.quietly("import", third, "--method", "glance-direct", "--store", "slow")
    cloud.until(third, cloud.demo, status="active", checksum=MD5, stores="slow")
    for image_id in (first, second, made["id"], third):
        glance("image-delete", image_id)
    staging = Path(cloud.sandbox.directory).parent / "store-staging"
    deadline = time.monotonic() + _PATIENCE_S
    while list(staging.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_location_as_a_user_and_as_a_service_adds_it(cloud: Cloud) -> None:
    image_id = _row(cloud.demo.glance("image-create", *_RAW, "--name", "located"), "id")
    cloud.demo.glance("add-location", "--url", cloud.web.url("/image"), image_id)
    shown = cloud.until(image_id, cloud.demo, status="active", checksum=MD5)
    assert _field(shown, "stores") == "web"
    # Nova and Cinder name places in our own stores, by openstacksdk.
    placed = Path(cloud.sandbox.directory).parent / "store-slow" / "snapshot"
    placed.write_bytes(DATA)
    script = f"""
import json, openstack
cloud = openstack.connect()
image = cloud.image.create_image(name="snap", disk_format="raw", container_format="bare")
digest = dict(os_hash_algo="sha512", os_hash_value="{SHA512}")
cloud.image.add_image_location(image.id, "file://{placed}", validation_data=digest)
cloud.image.wait_for_status(image, "active", [], interval=0.1, wait=120)
image = cloud.image.get_image(image.id)
places = [dict(url=one.url, metadata=one.metadata) for one in cloud.image.image_locations(image.id)]
print(json.dumps([image.id, image.checksum, image.hash_value, places]))
"""
    # An administrator who is no service may not, as in Glance.
    assert cloud.admin.try_("python", "-c", script).returncode != 0
    client = cloud.service
    snap, checksum, value, places = client.python(script)
    assert (checksum, value) == (MD5, SHA512)
    assert places == [{"url": f"file://{placed}", "metadata": {"store": "slow"}}]
    refused = cloud.demo.try_("glance", "add-location", "--url", f"file://{placed}", snap)
    assert refused.returncode != 0
    cloud.demo.glance("image-delete", image_id)
    assert cloud.file.exists()
    assert cloud.web.asked("/image"), "the web server was asked"
    client.glance("image-delete", snap)


def test_openstacksdk(cloud: Cloud, tmp_path: Path) -> None:
    script = f"""
import hashlib, json, openstack
cloud = openstack.connect()
images = cloud.image
image = images.create_image(name="sdk", filename={str(cloud.file)!r}, disk_format="raw",
    container_format="bare", wait=True, validate_checksum=True, colour="red")
found = images.find_image("sdk")
images.update_image(found, name="sdk2", min_ram=64)
images.add_tag(found, "t")
data = images.download_image(found, store_preferences=["fast"])
names = [one.name for one in images.images(limit=1, sort="name:asc")]
at = cloud.endpoint_for("image") or images.get_endpoint().removesuffix("/v2")
url = at + "/v2/images/" + found.id + "/file"
part = cloud.session.get(url, headers=dict(Range="bytes=10-19"))
tasks = len(list(images.image_tasks(found)))
stores = [one.id for one in images.stores()]
now = images.get_image(found.id)
images.delete_image(found, ignore_missing=False)
print(json.dumps(dict(id=found.id, md5=hashlib.md5(data.content).hexdigest(), name=now.name, ram=now.min_ram,
    tags=now.tags, colour=now.properties["colour"], part=part.content.hex(), status=part.status_code,
    stores=stores, tasks=tasks, listed="sdk2" in names)))
"""
    said = cloud.demo.python(script)
    assert (said["md5"], said["name"], said["ram"], said["tags"]) == (MD5, "sdk2", 64, ["t"])
    assert (said["colour"], said["status"], said["part"]) == ("red", 206, DATA[10:20].hex())
    assert (said["listed"], "fast" in said["stores"]) == (True, True)


def test_what_is_refused_says_so_in_the_clients(cloud: Cloud) -> None:
    for arguments, text in (
        (("create", *_RAW, "x" * 256), "400"),
        (("create", *_RAW, "--property", "os_glance_import_task=x", "x"), "403"),
        (("create", *_RAW, "--public", "x"), "403"),
    ):
        done = cloud.demo.try_("openstack", "image", *arguments)
        assert done.returncode != 0
        assert text in done.stderr, done.stderr
    wrong = {**cloud.demo.environment, "OS_PASSWORD": "wrong", "OS_TOKEN": "wrong"}
    done = Client(environment=wrong, home=cloud.demo.home).try_("openstack", "image", "list")
    assert done.returncode != 0


def test_places_are_changed_by_the_location_api_only(cloud: Cloud) -> None:
    image_id = cloud.image()
    url = cloud.web.url("/image")
    for arguments in (
        ("location-add", "--url", url, image_id),
        ("location-update", "--url", url, image_id),
        ("location-delete", "--url", url, image_id),
    ):
        for client in (cloud.demo, cloud.admin):
            refused = client.try_("glance", *arguments)
            assert refused.returncode != 0, arguments
            assert "Traceback" not in refused.stderr
            if arguments[0] == "location-add":
                assert "It's not allowed to change locations if locations are invisible." in refused.stderr
    # That is for images that have no data yet.
    refused = cloud.demo.try_("glance", "add-location", "--url", url, image_id)
    assert refused.returncode != 0
    assert "409" in refused.stderr
    cloud.demo.quietly("delete", image_id)


def test_what_there_is_none_of_is_not_found(cloud: Cloud) -> None:
    for program, *arguments in (
        ("glance", "md-namespace-list"),
        ("openstack", "image", "metadef", "namespace", "list"),
        ("openstack", "cached", "image", "list"),
    ):
        refused = cloud.admin.try_(program, *arguments)
        assert refused.returncode != 0, arguments
        assert "404" in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr
    refused = cloud.admin.try_("glance", "cache-list")
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr


def test_images_of_a_project_are_gone_without_a_trace(cloud: Cloud) -> None:
    """The last: everything that the others made was deleted, and so are the bytes."""
    for one in cloud.admin.openstack("list"):
        cloud.admin.quietly("delete", one["ID"])
    stores = [Path(cloud.sandbox.directory).parent / f"store-{name}" for name in ("fast", "slow")]
    deadline = time.monotonic() + _PATIENCE_S
    while any(path for store in stores for path in store.iterdir()):
        assert time.monotonic() < deadline, [list(store.iterdir()) for store in stores]
        time.sleep(0.1)


def _row(table: str, name: str) -> str:
    """A value in a table as `glance` prints it."""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == name:
            return cells[1]
    raise AssertionError(f"no {name} in\n{table}")
