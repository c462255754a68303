"""Hash kernels: hashlib's digests in every lane count and churn, saved states, wrong kernels found out."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.digests import Digest, DigestSet, HashThreads, kernels, kernels_in_use, saved
from dataplane.errors import DigestStateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dataplane.digests._lanes import State

_lanes: Any = pytest.importorskip("dataplane.digests._lanes", reason="the C extension is not built")

ALGORITHMS = [algorithm for algorithms in kernels.FAMILIES.values() for algorithm in algorithms]
KERNELS = [kernels.Kernel(*row) for row in _lanes.kernels()]
DATA = random.Random(6).randbytes(40_000)


@pytest.fixture(scope="module")
def threads() -> Iterator[HashThreads]:
    threads = HashThreads()
    yield threads
    threads.close()


def _restored(state: State) -> State:
    return saved.restore(saved.export(state), state.algorithm)


class TestKernels:
    @pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
    def test_every_kernel_passes_its_self_test(self, kernel: kernels.Kernel) -> None:
        assert kernels.self_test(_lanes, kernel) == ""

    @pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
    def test_every_kernel_agrees_with_hashlib_from_any_place_in_a_block(self, kernel: kernels.Kernel) -> None:
        rng = random.Random(kernel.number)
        for algorithm in kernels.FAMILIES[kernel.family]:
            for _ in range(20):
                count = rng.randint(1, kernel.lanes)
                states = [_lanes.State(algorithm) for _ in range(count)]
                seen = [bytearray() for _ in range(count)]
                for _ in range(5):
                    views = [_any_view(rng, 3000) for _ in range(count)]
                    size = _lanes.advance(states, views, rng.randint(1, 2000), kernel.number)
                    lone = rng.randrange(count)
                    extra = _any_view(rng, 300)
                    for index, view in enumerate(views):
                        seen[index] += view[:size]
                    _lanes.advance([states[lone]], [extra], len(extra), kernel.number)
                    seen[lone] += extra
                found = [state.hexdigest() for state in states]
                assert found == [hashlib.new(algorithm, data).hexdigest() for data in seen]

    @settings(max_examples=60, deadline=None)
    @given(
        algorithm=st.sampled_from(ALGORITHMS),
        streams=st.lists(st.lists(st.integers(0, 700), max_size=6), min_size=1, max_size=20),
        seed=st.integers(0, 2**32),
    )
    def test_streams_that_join_and_leave_at_any_chunk_get_hashlib_s_digests(
        self, algorithm: str, streams: list[list[int]], seed: int
    ) -> None:
        """Rounds as the scheduler makes them: any subset goes on, by as much as the shortest has; some are
        saved and restored in between."""
        rng = random.Random(seed)
        states = [_lanes.State(algorithm) for _ in streams]
        whole = [memoryview(rng.randbytes(sum(lengths))) for lengths in streams]
        at = [0] * len(streams)
        while open_streams := [index for index in range(len(streams)) if at[index] < len(whole[index])]:
            chosen = rng.sample(open_streams, rng.randint(1, len(open_streams)))
            views = [whole[index][at[index] : at[index] + rng.randint(1, 700)] for index in chosen]
            size = _lanes.advance([states[index] for index in chosen], views, rng.choice((1, 64, 10_000)))
            for index in chosen:
                at[index] += size
            back = rng.choice(chosen)
            states[back] = _restored(states[back])
        expected = [hashlib.new(algorithm, data).hexdigest() for data in whole]
        assert [state.hexdigest() for state in states] == expected

    @settings(max_examples=40, deadline=None)
    @given(
        count=st.integers(1, 20),
        sizes=st.lists(st.one_of(st.integers(0, 600), st.sampled_from((128, 1280, 64))), max_size=6),
    )
    def test_md5_and_sha512_together_are_what_they_are_alone(self, count: int, sizes: list[int]) -> None:
        both = [[_lanes.State(name) for _ in range(count)] for name in kernels.BOTH]
        at = 0
        for size in sizes:
            views = [memoryview(DATA)[1000 * lane + at :][:size] for lane in range(count)]
            assert _lanes.advance_both(*both, views, 10_000) == size
            at += size
        for name, states in zip(kernels.BOTH, both, strict=True):
            expected = [hashlib.new(name, DATA[1000 * lane :][:at]).hexdigest() for lane in range(count)]
            assert [state.hexdigest() for state in states] == expected

    def test_a_digest_in_between_changes_nothing(self) -> None:
        state = _lanes.State("sha512")
        for at in range(0, 1000, 100):
            _lanes.advance([state], [memoryview(DATA)[at : at + 100]], 100)
            assert state.digest() == hashlib.sha512(DATA[: at + 100]).digest()

    def test_a_length_beyond_32_bits_is_counted(self) -> None:
        chain = _lanes.State("md5").dump()[1]
        far = _lanes.State.load("md5", 2**40, chain, b"")
        near = _lanes.State.load("md5", 2**40 + 2**32, chain, b"")
        assert far.length == 2**40
        assert far.hexdigest() != near.hexdigest()

    @pytest.mark.parametrize(
        ("states", "views", "error"),
        [
            (["md5"], [], ValueError),
            (["md5", "sha512"], [b"a", b"a"], ValueError),
            (["md5"], ["text"], TypeError),
        ],
    )
    def test_wrong_arguments_are_refused_and_hold_nothing(
        self, states: list[str], views: list[Any], error: type[Exception]
    ) -> None:
        made = [_lanes.State(name) for name in states]
        with pytest.raises(error):
            _lanes.advance(made, views, 10)
        for state in made:
            _lanes.advance([state], [memoryview(b"abc")], 10)
            assert state.hexdigest() == hashlib.new(state.algorithm, b"abc").hexdigest()

    def test_one_state_twice_in_a_round_is_refused(self) -> None:
        state = _lanes.State("md5")
        with pytest.raises(RuntimeError, match="another thread"):
            _lanes.advance([state, state], [memoryview(b"a"), memoryview(b"b")], 1)
        assert state.length == 0

    def test_what_is_no_state_is_refused(self) -> None:
        with pytest.raises(TypeError, match="State"):
            _lanes.advance([hashlib.md5()], [memoryview(b"a")], 1)

    def test_an_algorithm_without_kernels_has_no_state(self) -> None:
        with pytest.raises(ValueError, match="sha1"):
            _lanes.State("sha1")


def _any_view(rng: random.Random, most: int) -> memoryview:
    start = rng.randrange(len(DATA) - most)
    return memoryview(DATA)[start : start + rng.randint(1, most)]


class TestSavedStates:
    @settings(max_examples=60, deadline=None)
    @given(algorithm=st.sampled_from(ALGORITHMS), size=st.integers(0, 1000), rest=st.integers(0, 1000))
    def test_a_restored_state_goes_on_at_any_byte(self, algorithm: str, size: int, rest: int) -> None:
        state = _lanes.State(algorithm)
        _lanes.advance([state], [memoryview(DATA)[:size]], size)
        again = _restored(state)
        assert again.length == size
        _lanes.advance([again], [memoryview(DATA)[size : size + rest]], rest)
        assert again.hexdigest() == hashlib.new(algorithm, DATA[: size + rest]).hexdigest()
        assert state.hexdigest() == hashlib.new(algorithm, DATA[:size]).hexdigest()

    @settings(max_examples=150, deadline=None)
    @given(
        algorithm=st.sampled_from(ALGORITHMS),
        size=st.integers(0, 300),
        at=st.integers(0, 10_000),
        flip=st.integers(1, 255),
    )
    def test_any_changed_byte_is_refused(self, algorithm: str, size: int, at: int, flip: int) -> None:
        state = _lanes.State(algorithm)
        _lanes.advance([state], [memoryview(DATA)[:size]], size)
        damaged = bytearray(saved.export(state))
        damaged[at % len(damaged)] ^= flip
        with pytest.raises(DigestStateError):
            saved.restore(bytes(damaged), algorithm)

    def test_any_cut_and_any_addition_is_refused(self) -> None:
        whole = saved.export(_lanes.State("sha256"))
        for end in range(len(whole)):
            with pytest.raises(DigestStateError):
                saved.restore(whole[:end], "sha256")
        with pytest.raises(DigestStateError):
            saved.restore(whole + b"\0", "sha256")

    @pytest.mark.parametrize(
        ("at", "value", "words"),
        [
            (4, 2, "version 2"),
            (5, 77, "algorithm 77"),
            (5, 5, "lengths"),
            (6, 3, "lengths"),
            (15, 255, "lengths"),
        ],
    )
    def test_a_valid_check_value_does_not_excuse_nonsense(self, at: int, value: int, words: str) -> None:
        body = bytearray(saved.export(_lanes.State("md5"))[:-4])
        body[at] = value
        with pytest.raises(DigestStateError, match=words):
            saved.restore(bytes(body) + zlib.crc32(body).to_bytes(4, "little"), "md5")

    def test_another_algorithm_s_state_is_refused(self) -> None:
        with pytest.raises(DigestStateError, match="of md5, not of sha512"):
            saved.restore(saved.export(_lanes.State("md5")), "sha512")

    def test_the_form_of_version_1_stays_as_it_is(self) -> None:
        """Checkpoints on disk were written in it."""
        state = _lanes.State("md5")
        _lanes.advance([state], [memoryview(b"x" * 70)], 70)
        assert saved.export(state).hex() == (
            "474c44530101060046000000000000004e2b777986bd5cd63999bd875a8405ad787878787878a7a8df73"
        )


@pytest.mark.skipif("md5" not in kernels.load().kernels, reason="hashlib computes md5 here")
class TestDigestSets:
    async def test_a_set_goes_on_from_its_saved_states(self, threads: HashThreads) -> None:
        first = DigestSet(("md5", "sha512"), threads)
        for member in first.members:
            await member.update([memoryview(DATA)[:12_345]])
        second = DigestSet.restore(first.export(), threads)
        for member in second.members:
            assert member.size_bytes == 12_345
            await member.update([memoryview(DATA)[12_345:]])
        assert second.hexdigests() == {
            "md5": hashlib.md5(DATA).hexdigest(),
            "sha512": hashlib.sha512(DATA).hexdigest(),
        }

    def test_what_hashlib_computes_cannot_be_saved_and_says_so(self, threads: HashThreads) -> None:
        digests = DigestSet(("md5", "sha1"), threads)
        assert not digests.can_export
        with pytest.raises(DigestStateError, match="sha1"):
            digests.export()
        with pytest.raises(DigestStateError, match="sha1"):
            Digest("sha1", threads, saved_state=b"anything")

    def test_every_member_needs_its_state(self, threads: HashThreads) -> None:
        states = DigestSet(("md5",), threads).export()
        with pytest.raises(DigestStateError, match="sha512"):
            DigestSet(("md5", "sha512"), threads, saved_states=states)


class _Broken:
    """The extension, with kernels that turn one bit over."""

    def __init__(self, broken: set[int], *, broken_both: int = 0) -> None:
        """`broken_both`: of so many streams the kernel for md5 and sha512 together gets one wrong."""
        self._broken = broken
        self._broken_both = broken_both
        self.used: dict[str, list[int]] = {}

    State = _lanes.State

    def kernels(self) -> Any:
        return _lanes.kernels()

    def measure(self, number: int, rounds: int) -> float:
        return float(_lanes.measure(number, rounds))

    def use(self, family: str, choices: list[tuple[int, float]]) -> None:
        self.used[family] = [number for number, _ in choices]

    def has_both(self) -> bool:
        return bool(_lanes.has_both())

    def advance_both(self, md5: list[Any], sha512: list[Any], views: list[memoryview], most: int) -> int:
        if len(views) == self._broken_both:
            views = [*views[:-1], memoryview(bytes(len(views[-1])))]
        return int(_lanes.advance_both(md5, sha512, views, most))

    def advance(self, states: list[Any], views: list[memoryview], most: int, kernel: int) -> int:
        if kernel in self._broken:
            views = [*views[:-1], memoryview(bytes([view_byte ^ 1 for view_byte in views[-1]]))]
        return int(_lanes.advance(states, views, most, kernel))


class TestSafety:
    def test_a_kernel_with_one_wrong_lane_is_switched_off(self, caplog: pytest.LogCaptureFixture) -> None:
        widest = max(
            (kernel for kernel in KERNELS if kernel.family == "md5"), key=lambda kernel: kernel.lanes
        )
        extension = _Broken({widest.number})
        with caplog.at_level(logging.WARNING):
            use = kernels.choose(extension)
        assert use.switched_off == (widest.name,)
        assert f"The hash kernel {widest.name} is switched off" in caplog.text
        assert widest.number not in extension.used["md5"]

    @pytest.mark.skipif(not _lanes.has_both(), reason="no AVX-512")
    @pytest.mark.parametrize("streams", [1, kernels.FEW_BOTH_LANES, kernels.BOTH_LANES])
    def test_a_wrong_kernel_for_both_leaves_the_ones_for_each(self, streams: int) -> None:
        use = kernels.choose(_Broken(set(), broken_both=streams))
        assert use.switched_off == (kernels.BOTH_NAME,)
        assert use.both_from == 0
        assert use.lanes("md5") > 1

    def test_without_a_sound_kernel_for_one_stream_hashlib_takes_over(self) -> None:
        broken = {kernel.number for kernel in KERNELS if kernel.family == "sha512" and kernel.lanes == 1}
        use = kernels.choose(_Broken(broken))
        assert use.lanes("sha512") == use.lanes("sha384") == 0
        assert use.describe()["sha512"] == "hashlib"
        assert use.lanes("md5") >= 1

    @pytest.mark.parametrize("level", ["hashlib", "plain", "avx2", "avx512", "nonsense"])
    def test_every_level_gives_the_same_digests(self, level: str) -> None:
        """In a process of its own: kernels are chosen once."""
        done = subprocess.run(
            [sys.executable, "-c", _LEVEL_PROGRAM],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, kernels.ENVIRONMENT: level},
        )
        told = json.loads(done.stdout)
        assert told["digests"] == [
            {"md5": hashlib.md5(DATA[at:]).hexdigest(), "sha512": hashlib.sha512(DATA[at:]).hexdigest()}
            for at in range(11)
        ]
        if level == "hashlib":
            assert set(told["kernels"].values()) == {"hashlib"}
        if level in ("plain", "avx2"):
            assert "avx512" not in str(told["kernels"])
        if level == "plain":
            assert told["kernels"]["sha512"] == "sha512 x1 plain"
        assert (level == "nonsense") == ("is ignored" in done.stderr)

    def test_a_build_without_the_extension_works_and_says_so(self) -> None:
        program = "import sys; sys.modules['dataplane.digests._lanes'] = None\n" + _LEVEL_PROGRAM
        free = {name: value for name, value in os.environ.items() if name != kernels.ENVIRONMENT}
        done = subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=free
        )
        told = json.loads(done.stdout)
        assert told["digests"][0]["md5"] == hashlib.md5(DATA).hexdigest()
        assert set(told["kernels"].values()) == {"hashlib"}
        assert told["why"] == "the C extension is not built"

    def test_the_kernels_in_use_are_named_by_algorithm(self) -> None:
        assert set(kernels_in_use()) == set(ALGORITHMS)


_LEVEL_PROGRAM = """
import asyncio, json, random
from dataplane.digests import DigestSet, HashThreads, kernels, kernels_in_use

async def main():
    data = memoryview(random.Random(6).randbytes(40_000))
    threads = HashThreads()
    sets = [DigestSet(("md5", "sha512"), threads) for _ in range(11)]
    await asyncio.gather(
        *(member.update([data[at:]]) for at, digests in enumerate(sets) for member in digests.members)
    )
    threads.close()
    found = [digests.hexdigests() for digests in sets]
    print(json.dumps({"digests": found, "kernels": kernels_in_use(), "why": kernels.load().why_hashlib}))

asyncio.run(main())
"""
