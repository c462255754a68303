"""The scenarios of many images, small and for real: who takes part, what is checked, what is compared."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from bench import rivals
from bench.images import Images, each_of
from bench.model import FLOOR, OURS, BenchError, Sample, Workplace
from bench.ours import OursCall
from bench.rivals import FILE_RIVALS
from bench.run import compare, rows, run_plan
from bench.scenarios import SCENARIOS
from bench.stores import file_store
from dataplane.store import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.model import Row


def small(path: Path, size_bytes: int = 8 * MIB) -> Workplace:
    return Workplace(directory=path, disk=path, size_bytes=size_bytes, is_quick=True)


def run_once(name: str, place: Workplace) -> tuple[list[Row], list[str]]:
    """The rows and what is said."""
    with SCENARIOS[name].prepare(place) as plan:
        samples = run_plan(plan, 1, lambda _: None)
        found = rows(name, plan, samples)
        said = [compare(each, samples, plan)[0] for each in plan.comparisons]
    assert list(place.directory.iterdir()) == []
    return found, said


@pytest.fixture
def only_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rival is on this machine."""
    for rival in FILE_RIVALS:
        monkeypatch.setattr(type(rival), "missing", lambda _: "not here")


def present(images: int) -> Sequence[str]:
    return [rival.name for rival in FILE_RIVALS if rival.takes(images) and rival.missing() is None]


def test_eight_imports_beside_everybody_who_is_here(tmp_path: Path) -> None:
    found, said = run_once("import-8", small(tmp_path))
    measured = [row.subject for row in found if row.subject != FLOOR]
    assert measured == [OURS, *present(8)]
    assert all(row.limited_by for row in found)
    for name in present(8):
        assert any(f"times as fast as {name} (" in words for words in said)
    assert any("CPU s/GiB" in words for words in said)
    assert any("of the floor of this run" in words for words in said)


def test_one_import_has_a_floor_and_nobody_needs_two_processes(tmp_path: Path) -> None:
    with SCENARIOS["import-1"].prepare(small(tmp_path)) as plan:
        assert "glance_store, 2 processes" not in {trial.subject for trial in plan.trials}
        ours = next(trial for trial in plan.trials if trial.subject == OURS)
        measured = {trial.case for trial in plan.trials if trial.subject == FLOOR}
        for trial in plan.trials:
            assert {case for lane in trial.lanes.values() for case in lane} <= measured, trial.subject
        assert ours.lanes.keys() == {"md5 beside sha512", "copies"}


def test_sixteen_imports_name_only_floors_that_are_measured(tmp_path: Path) -> None:
    for name in ("import-16", "many", "verify-bulk", "chunk-size"):
        with SCENARIOS[name].prepare(small(tmp_path)) as plan:
            measured = {trial.case for trial in plan.trials if trial.subject == FLOOR}
            for trial in plan.trials:
                assert {case for lane in trial.lanes.values() for case in lane} <= measured, trial


@pytest.mark.usefixtures("only_us")
def test_many_tells_memory_and_the_lag_of_the_loop(tmp_path: Path) -> None:
    found, said = run_once("many", small(tmp_path))
    ours = next(row for row in found if row.subject == OURS)
    assert ours.case.startswith("64 images")
    assert isinstance(ours.facts["loop_lag_ms"], float)
    assert any(words.startswith("glissade: loop lag ") and "at most 50 ms" in words for words in said)
    assert any("MiB in 64 images" in words and "at most 512 MiB" in words for words in said)


def test_missing_digests_of_a_directory(tmp_path: Path) -> None:
    found, _ = run_once("verify-bulk", small(tmp_path, 16 * MIB))
    ours = next(row for row in found if row.subject == OURS)
    assert ours.facts["bytes_read"] == 32 * MIB
    assert ours.facts["methods"] == []
    rclone = [row for row in found if row.subject == "rclone"]
    assert all("md5 alone" in row.case for row in rclone)


def test_chunk_sizes_differ_in_hops(tmp_path: Path) -> None:
    found, said = run_once("chunk-size", small(tmp_path, 32 * MIB))
    hops = {row.case: row.facts["hops_per_mib"] for row in found if row.subject == OURS}
    small_chunks, large_chunks = hops["8 images, chunks of 512 KiB"], hops["8 images, chunks of 4 MiB"]
    assert isinstance(small_chunks, float)
    assert isinstance(large_chunks, float)
    assert small_chunks > 2 * large_chunks
    assert any("hops" in words for words in said)


def test_our_child_tells_the_digests_of_every_image(tmp_path: Path) -> None:
    made = Images.make(tmp_path / "sources", 2, MIB)
    (tmp_path / "store").mkdir()
    call = OursCall(
        images={image: str(path) for image, path in made.sources.items()},
        stores=[file_store(tmp_path / "store")],
        chunk_bytes=256 * KIB,
        event_loop="asyncio",
    )
    sample = call.run()
    for image, path in made.sources.items():
        content = path.read_bytes()
        assert (tmp_path / "store" / image).read_bytes() == content
        digests = sample.facts["digests"]
        assert isinstance(digests, dict)
        assert digests[image] == {
            "md5": hashlib.md5(content).hexdigest(),
            "sha512": hashlib.sha512(content).hexdigest(),
        }


@pytest.mark.parametrize("count", [1, 3])
def test_hashlib_in_threads_copies_and_digests_right(count: int, tmp_path: Path) -> None:
    made = Images.make(tmp_path / "sources", count, 5 * MIB)
    (tmp_path / "store").mkdir()
    sample = rivals.HASHLIB.copy(made.sources, tmp_path / "store")
    for image, path in made.sources.items():
        content = path.read_bytes()
        assert (tmp_path / "store" / image).read_bytes() == content
        digests = sample.facts["digests"]
        assert isinstance(digests, dict)
        assert digests[image]["sha512"] == hashlib.sha512(content).hexdigest()


def told(images: Images, digest: str) -> Sample:
    digests = {image: {"md5": digest} for image in images.sources}
    return Sample(wall_s=1, cpu_s=1, peak_rss_bytes=1, facts={"digests": digests})


def test_another_digest_than_the_others_is_no_result(tmp_path: Path) -> None:
    made = Images.make(tmp_path / "sources", 2, MIB)
    made.run("a", lambda: told(made, "1"))
    with pytest.raises(BenchError, match="b found another md5 than the others"):
        made.run("b", lambda: told(made, "2"))


def test_digests_of_some_images_only_are_no_result(tmp_path: Path) -> None:
    made = Images.make(tmp_path / "sources", 2, MIB)
    one = Sample(wall_s=1, cpu_s=1, peak_rss_bytes=1, facts={"digests": {next(iter(made.sources)): {}}})
    with pytest.raises(BenchError, match="digests of 1 of 2 images"):
        made.run("a", lambda: one)


def test_a_short_copy_is_no_result_and_is_removed(tmp_path: Path) -> None:
    made = Images.make(tmp_path / "sources", 1, MIB)
    store = tmp_path / "store"
    store.mkdir()

    def cut() -> Sample:
        (store / next(iter(made.sources))).write_bytes(b"short")
        return Sample(wall_s=1, cpu_s=1, peak_rss_bytes=1)

    with pytest.raises(BenchError, match="a wrote 5 bytes instead of 1048576"):
        made.run("a", cut, store)
    assert list(store.iterdir()) == []


@pytest.mark.parametrize(("total", "count", "each"), [(4096, 8, 512), (100, 8, 12), (4, 16, 1)])
def test_images_are_whole_mib(total: int, count: int, each: int) -> None:
    assert each_of(total * MIB, count) == each * MIB


def test_claims_on_a_new_and_on_a_full_catalogue(tmp_path: Path) -> None:
    found, said = run_once("claims", small(tmp_path))
    assert [row.case for row in found] == [
        "SQLite, 0 ended jobs, 40 imports",
        "SQLite, 2000 ended jobs, 40 imports",
    ]
    for row in found:
        assert 0 < float(str(row.facts["start_p50_ms"])) <= float(str(row.facts["start_p95_ms"]))
        assert float(str(row.facts["jobs_per_s"])) > 0
    assert any("start p50" in words for words in said)
    assert any("list failed" in words for words in said)
