"""The adapter in front of PyTorch's CPU allocator."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.pools import is_in, is_native, run_script
from torch.profiler import ProfilerActivity, profile

from vramkit import MemoryPool, _build
from vramkit.errors import NativeLibraryError
from vramkit.pool import _adapter


def test_it_is_built_for_this_torch() -> None:
    adapter = ctypes.CDLL(str(_build.adapter_path("cpu")))
    adapter.vramkit_adapter_torch_version.restype = ctypes.c_char_p
    built_for = adapter.vramkit_adapter_torch_version().decode().split(".")
    assert built_for[:2] == torch.__version__.split(".")[:2]


def test_installing_again_changes_nothing(pool: MemoryPool) -> None:
    adapter = ctypes.CDLL(str(_build.adapter_path("cpu")))
    adapter.vramkit_adapter_install.restype = ctypes.c_char_p
    assert adapter.vramkit_adapter_install(None) is None
    with pool:
        assert is_in(pool, torch.empty(1000))


def test_a_core_of_another_version_is_refused() -> None:
    run_script(
        """
        import ctypes, torch
        from vramkit import _build
        from vramkit._core._structs import CoreApi
        adapter = ctypes.CDLL(str(_build.adapter_path("cpu")))
        adapter.vramkit_adapter_install.restype = ctypes.c_char_p
        api = CoreApi(abi_version=99, struct_bytes=ctypes.sizeof(CoreApi))
        assert b"another vramkit version" in adapter.vramkit_adapter_install(ctypes.byref(api))
        assert torch.ones(5).sum() == 5
        """
    )


def test_a_failed_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: str) -> Path:
        raise _build.BuildError(f"no compiler for the {kind} adapter; install g++")

    monkeypatch.setattr(_build, "adapter_path", fail)
    with pytest.raises(
        NativeLibraryError,
        match=r"for cuda tensors: no compiler for the cuda adapter; install g\+\+",
    ):
        _adapter._adapter_path("cuda")


def test_a_refusal_is_told(tmp_path: Path) -> None:
    source, built = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text('const char* vramkit_adapter_install(void* a) { (void)a; return "no"; }')
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
    with pytest.raises(NativeLibraryError, match=r"the allocator adapter .*other\.so refuses: no"):
        _adapter._install(built)


def test_without_a_scope_tensors_are_native(pool: MemoryPool) -> None:
    tensor = torch.empty(1000)
    assert is_native(tensor)
    assert pool.stats().allocations == 0


def test_the_profiler_sees_the_pool_s_memory(pool: MemoryPool) -> None:
    with pool, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = torch.empty(3_000_000)
        torch.empty(500_000)
    events = [event for event in recorded.events() if event.name == "aten::empty"]
    assert [event.self_cpu_memory_usage for event in events] == [12_000_000, 2_000_000]
    total = sum(event.self_cpu_memory_usage for event in recorded.events())
    assert total == 12_000_000
    assert kept.nbytes == 12_000_000


def test_onednn_tensors_made_before_the_installation() -> None:
    """OneDNN frees through the allocator of the moment, which is the adapter by then."""
    run_script(
        """
        import torch
        import torch.utils.mkldnn
        def resident_bytes():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[1]) * 4096
        big = torch.ones(16 << 20).to_mkldnn()
        made = [torch.ones(4, 8, 16, 16).to_mkldnn() for _ in range(3)]
        conv = torch.nn.Conv2d(8, 8, 3)
        packed = torch.utils.mkldnn.to_mkldnn(conv)
        expected = packed(made[0]).to_dense()
        from vramkit import MemoryPool
        pool = MemoryPool("64MiB", device="cpu")
        with pool:
            inside = torch.ones(4, 8, 16, 16).to_mkldnn()
            assert torch.equal(packed(made[1]).to_dense(), expected)
            assert torch.equal(packed(inside).to_dense(), expected)
            assert torch.equal(inside.to_dense(), torch.ones(4, 8, 16, 16))
            # Freed by PyTorch's allocator, and freed indeed: 64 MiB go back to the system.
            before = resident_bytes()
            del made, packed, big
            assert before - resident_bytes() > 60 << 20
            held = [torch.ones(100).to_mkldnn() for _ in range(5)]
        del held, inside
        assert pool.stats().live_blocks == 0, pool.snapshot()
        pool._core.check()
        """
    )


def test_storages_of_before_the_first_pool_grow_in_pools() -> None:
    run_script(
        """
        import torch, vramkit
        from torch._subclasses.fake_tensor import FakeTensorMode
        from vramkit._core import owner

        class Sub(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                raise AssertionError("asked")

        early, emptied, kept = torch.ones(1000), torch.ones(1000), torch.ones(1000)
        parameter = torch.nn.Parameter(torch.ones(1000))
        view = early[10:20]
        others = [
            torch.eye(3).to_sparse(), torch.nn.LazyLinear(3), torch.nested.nested_tensor([kept]),
            torch.empty(3, device="meta"), FakeTensorMode().from_tensor(torch.ones(3)), Sub(),
            torch.from_numpy(torch.ones(3).numpy()), torch.ones(3).share_memory_(),
        ]
        emptied.untyped_storage().resize_(0)
        pool = vramkit.MemoryPool("64MiB", device="cpu")
        is_in = lambda tensor: owner(tensor.data_ptr()) == pool._core.handle
        with pool:
            early.resize_(1 << 20)
            emptied.untyped_storage().resize_(4000)
            parameter.data.resize_(1 << 20)
            assert is_in(early) and is_in(emptied) and is_in(parameter)
            assert early[:1000].sum() == 1000 and view.sum() == 10
            try:
                kept.resize_(1 << 30)
            except torch.OutOfMemoryError:
                pass
            else:
                raise AssertionError("outside the budget")
        assert kept.untyped_storage().nbytes() == 4000
        assert pool.stats().live_blocks == 3
        early.resize_(1 << 21)
        assert owner(early.data_ptr()) == 0 and early[:1000].sum() == 1000
        emptied.untyped_storage().resize_(0)
        assert pool.stats().live_blocks == 1
        del parameter
        assert pool.stats().live_blocks == 0
        """
    )
