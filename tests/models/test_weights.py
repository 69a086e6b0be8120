from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import pickle
import tracemalloc
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_saliency.errors import ModelError
from wsi_saliency.models.description import Description
from wsi_saliency.models.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextlib.contextmanager
def memory_below(most: int) -> Iterator[None]:
    """Make sure that Python and torch together take no more bytes than that; tensors are counted by size."""
    taken = 0

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal taken
            out = func(*args, **(kwargs or {}))
            taken += out.untyped_storage().nbytes() if isinstance(out, torch.Tensor) else 0
            return out

    with Count():  # type: ignore[no-untyped-call]
        torch.zeros(1)  # torch imports much when it is watched for the first time
    taken = 0
    tracemalloc.start()
    try:
        with Count():  # type: ignore[no-untyped-call]
            yield
        assert tracemalloc.get_traced_memory()[1] + taken < most
    finally:
        tracemalloc.stop()


STATE = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "checkpoint",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"lr": 0.1}},
        {"model_state_dict": STATE},
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.4"},
        {
            "state_dict": {**prefixed("model."), "criterion.weight": torch.ones(2)},
            "pytorch-lightning_version": "2.4",
        },
        prefixed("module."),
        prefixed("module.model."),
        prefixed("_orig_mod.module."),
        prefixed("backbone."),
        prefixed("model.encoder."),
        {
            "state_dict": {**prefixed("net."), "loss.weight": torch.ones(2)},
            "pytorch-lightning_version": "2.4",
        },
        {"model": {"state_dict": STATE, "epoch": 3}},
        {"network": STATE},
        {"state_dict": {"fc.bias": torch.zeros(9)}, "state_dict_ema": STATE},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_come_down_to_one_state_dict(
    checkpoint: dict[str, Any], zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    state = read_weights(path).state
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


def test_a_prefix_that_not_all_names_have_is_kept(tmp_path: Path) -> None:
    torch.save({**prefixed("model."), "head.bias": torch.ones(1)}, tmp_path / "model.pt")
    assert set(read_weights(tmp_path / "model.pt").state) == {"model.fc.weight", "model.fc.bias", "head.bias"}


def test_timm_checkpoint_says_its_architecture(tmp_path: Path) -> None:
    torch.save({"arch": "resnet18", "state_dict": STATE}, tmp_path / "model.pth")
    assert read_weights(tmp_path / "model.pth").description == Description(architecture="resnet18")


def test_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    assert read_weights(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_with_all_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    metadata = {
        "architecture": "resnet18",
        "model_args": '{"block_args": {}}',
        "patch": "96",
        "mpp": "0.5",
        "mean": "[0.5, 0.6, 1]",
        "std": "[0.1, 0.2, 0.3]",
        "class_names": '["normal", "tumour"]',
        "note": "for trying",
        "format": "pt",
    }
    save_file(STATE, path, metadata=metadata)
    weights = read_weights(path)
    assert weights.description == Description(
        "resnet18",
        {"block_args": {}},
        96,
        0.5,
        (0.5, 0.6, 1.0),
        (0.1, 0.2, 0.3),
        ("normal", "tumour"),
        "for trying",
    )
    assert torch.equal(weights.state["fc.weight"], STATE["fc.weight"])


def test_safetensors_without_metadata_says_nothing(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert read_weights(tmp_path / "model.safetensors").description == Description()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mpp", "half"),
        ("mpp", "0"),
        ("mpp", "nan"),
        ("mpp", "inf"),
        ("patch", "0"),
        ("patch", "96.5"),
        ("patch", "9" * 200),
        ("mean", f"[0.5, 0.5, {'9' * 400}]"),
        ("mean", "[0.5, 0.5]"),
        ("mean", "0.5"),
        ("mean", "[0.5, 0.5, NaN]"),
        ("std", "[0.5, 0.5, 0]"),
        ("std", "[0.5, 0.5, true]"),
        ("class_names", '["a", 2]'),
        ("class_names", "[]"),
        ("class_names", "tumour"),
        ("model_args", "[1]"),
    ],
)
def test_bad_metadata_names_file_and_key(key: str, value: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", metadata={key: value})
    assert f"metadata {key!r} is {value!r}"[:200] in refused(tmp_path / "model.safetensors")


def test_metadata_nested_beyond_measure_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", metadata={"model_args": "[" * 10**5})
    message = refused(tmp_path / "model.safetensors")
    assert "metadata 'model_args' is '[[[" in message
    assert len(message) < 600


def test_control_characters_of_metadata_reach_nobody(tmp_path: Path) -> None:
    hostile = "\x1b[31mred\x07\n\u202eline"
    metadata = {"note": hostile, "class_names": json.dumps([hostile]), "architecture": hostile}
    save_file(STATE, tmp_path / "model.safetensors", metadata=metadata)
    said = read_weights(tmp_path / "model.safetensors").description
    assert said.note == said.architecture == r"\x1b[31mred\x07 \u202eline"
    assert said.class_names == (said.note,)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing.pt")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"hello world", "a text file"),
        (b"a list of pytorch models", "a text file"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xff\xfe", "ONNX"),
        (b'["abcd",{"a": 1}]', "a JSON text"),
        (b'{"architecture": "resnet18"}', "a JSON text: if it describes a model, give the folder"),
        ('{"classes": ["µm'.encode()[:-1], "a JSON text"),
        (b"<!DOCTYPE html><html><body>404</body>", "a web page"),
        (b'<?xml version="1.0"?>', "an XML text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG picture"),
        (b"II*\0" + bytes(50), "a TIFF picture"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"\x1f\x8b\x08" + bytes(50), "a gzip archive: unpack it first"),
        (bytes(257) + b"ustar" + bytes(50), "a tar archive"),
        (pickle.dumps({"a": 1}), "a pickle"),
        (bytes(range(256)), "neither a safetensors nor a PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
    ],
)
def test_what_is_no_weights_file_is_called_what_it_is(
    content: bytes, what: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert what in refused(path)


@pytest.mark.parametrize(
    ("member", "what"),
    [
        ("weight.npy", "NumPy arrays"),
        ("model.weights.h5", "Keras"),
        ("readme.txt", "without weights of PyTorch"),
    ],
)
def test_other_zip_archives_are_called_what_they_are(member: str, what: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr(member, b"1")
    assert what in refused(tmp_path / "model.pt")


def test_a_file_is_read_as_what_it_is_and_not_as_it_is_called(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.pt", metadata={"architecture": "resnet18"})
    assert read_weights(tmp_path / "model.pt").description.architecture == "resnet18"
    torch.save(STATE, tmp_path / "model.bin")
    assert read_weights(tmp_path / "model.bin").state.keys() == STATE.keys()
    torch.save(STATE, tmp_path / "model.safetensors")  # torch.load itself goes by the name
    assert "rename it" in refused(tmp_path / "model.safetensors")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zipped", "older"])
def test_a_truncated_file_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    path, big = tmp_path / "model.pt", {"a": torch.zeros(3000)}
    if kind == "safetensors":
        save_file(big, path)
    else:
        torch.save(big, path, _use_new_zipfile_serialization=kind == "zipped")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    message = refused(path)
    assert "damaged or cut" in message
    assert "copy or download it again" in message


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}},
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"},
        2**60,
        99_000_000,
    ],
)
def test_a_safetensors_header_that_claims_too_much_is_refused(
    header: dict[str, Any] | int, tmp_path: Path
) -> None:
    text = b'{"a": 1}' if isinstance(header, int) else json.dumps(header).encode()
    length = header if isinstance(header, int) else len(text)
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + bytes(8))
    assert "damaged or cut" in refused(tmp_path / "model.safetensors")


def rewritten(
    path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED, member: str = ".pkl"
) -> Path:
    """Write the archive again, with what ``change`` makes of some members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith(member) else content)
    return path


def test_an_archive_that_inflates_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(4)}, path)
    rewritten(path, lambda content: bytes(10**7), zipfile.ZIP_DEFLATED, "/data/0")
    with memory_below(2**20):
        assert "10.0 MB" in refused(path)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Each member of the directory is a large one: stored once, it is named often."""
    path, large = tmp_path / "model.pt", {"a": torch.zeros(10**5)}
    torch.save(large, path)
    with zipfile.ZipFile(path, "a") as archive:
        info = archive.getinfo("model/data/0")
        for i in range(1, 50):
            again = copy.copy(info)
            again.filename = f"model/data/{i}"
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    assert "would become" in refused(path)


def number(value: int) -> bytes:
    """Pickle a large number."""
    return b"\x8a\x08" + value.to_bytes(8, "little")


EIGHT = b"K\x08"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pkl: pkl.replace(EIGHT, number(10**12)), "damaged"),  # a storage larger than its bytes
        (lambda pkl: pkl.replace(EIGHT + b"\x85", number(10**12) + b"\x85"), "damaged"),  # a tensor
        (
            lambda pkl: pkl.replace(EIGHT + b"\x85", number(10**12) + b"\x85").replace(
                b"K\x01\x85", b"K\x00\x85"
            ),
            "4.0 TB",  # one value, repeated
        ),
        (
            lambda pkl: b"\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\n" + number(10**11) + b"\x85Rs.",
            "could fill memory",
        ),
    ],
    ids=["storage", "tensor", "repeated", "bytearray"],
)
def test_a_pickle_that_claims_memory_is_refused_before_it_has_any(
    change: Callable[[bytes], bytes], said: str, tmp_path: Path
) -> None:
    torch.save({"a": torch.arange(8.0)}, tmp_path / "model.pt")
    path = rewritten(tmp_path / "model.pt", change)
    with memory_below(2**24):
        assert said in refused(path)


def test_an_older_file_cannot_fill_memory_either(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(8.0)}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "model.pt").read_bytes()
    claim = b"}X\x01\0\0\0acbuiltins\nbytearray\n" + number(10**11) + b"\x85Rs."
    (tmp_path / "model.pt").write_bytes(content.replace(b"}q\x00X\x01\0\0\0a", claim, 1))
    assert "could fill memory" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({0: torch.zeros(3), 1: torch.zeros(2)}, "numbers for names"),
        ({**STATE, 5: torch.zeros(2)}, "numbers for names"),
        ({**STATE, "a": torch.zeros(2).to_sparse()}, "sparse"),
        ({**STATE, "a": torch.zeros(2, dtype=torch.complex64)}, "complex"),
        ({**STATE, "a": torch.zeros(2, device="meta")}, "(a)"),
        ({**STATE, "\x1b[31ma\n": torch.zeros(2).to_sparse()}, r"(\x1b[31ma)"),
    ],
)
def test_what_no_network_can_take_is_refused(state: dict[Any, Any], said: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "model.pt")
    assert said in refused(tmp_path / "model.pt")


@settings(max_examples=60)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    zipped=st.booleans(),
)
def test_damage_never_shows_a_traceback(
    changes: list[tuple[int, int]], zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position] = value
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        assert all(isinstance(value, torch.Tensor) for value in read_weights(path).state.values())


class Malicious:
    ran: list[str] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[Any, ...]:
        return (Malicious.ran.append, ("ran",))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"args": argparse.Namespace(lr=1), "state_dict": STATE}, "argparse.Namespace"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"weight": Malicious()}, "getattr"),
    ],
)
def test_pickled_code_is_refused_and_named(content: object, code: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt")
    assert code in message
    assert "state_dict()" in message
    assert Malicious.ran == []


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps(STATE))
    refused(tmp_path / "model.pt")


class Scripted(nn.Module):
    """A small network with what TorchScript keeps beside tensors: lists, numbers, a module that is shared."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sizes, self.scale = [2, 3], 2.0
        self.body = nn.ModuleList([nn.Linear(2, 2), nn.BatchNorm1d(2)])
        self.head = nn.Linear(2, 3)
        self.same = self.body[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body:
            x = layer(x)
        return self.head(self.same(x)) * self.scale * len(self.sizes)  # type: ignore[no-any-return]


def scripted(path: Path, *, frozen: bool = False, traced: bool = False) -> nn.Module:
    net = Scripted().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files are still about
        program = torch.jit.trace(net, torch.zeros(1, 2)) if traced else torch.jit.script(net)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(program) if frozen else program, path)  # type: ignore[no-untyped-call]
    return net


@pytest.mark.parametrize("traced", [True, False])
def test_the_state_dict_is_taken_out_of_a_torchscript_archive(traced: bool, tmp_path: Path) -> None:
    net = scripted(tmp_path / "model.pt", traced=traced)
    state = read_weights(tmp_path / "model.pt").state
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_a_torchscript_archive_without_a_state_dict_says_so(tmp_path: Path) -> None:
    scripted(tmp_path / "model.pt", frozen=True)
    assert "TorchScript archive without a state dict" in refused(tmp_path / "model.pt")


def test_a_torchscript_archive_runs_no_code_either(tmp_path: Path) -> None:
    scripted(tmp_path / "model.pt")
    path = rewritten(tmp_path / "model.pt", lambda pkl: b"\x80\x02cos\nsystem\nX\x01\0\0\0a\x85R.")
    message = refused(path)
    assert "pickled code (os.system)" in message or "pickled code (posix.system)" in message
    assert "TorchScript" in message


def test_torchscript_objects_that_hold_each_other_end_somewhere(tmp_path: Path) -> None:
    scripted(tmp_path / "model.pt")
    empty, twice = b"c__torch__.a\nb\n)\x81", b"}(X\x01\0\0\0ah\x00X\x01\0\0\0bh\x00ub"
    path = rewritten(tmp_path / "model.pt", lambda pkl: b"\x80\x02" + empty + b"q\x00" + twice + b".")
    assert "damaged" in refused(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1}}])
def test_a_file_without_tensors_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert "no state dict" in refused(tmp_path / "model.pt")


def test_a_single_tensor_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    assert "holds a Tensor" in refused(tmp_path / "model.pt")


def test_metadata_survives_json_of_any_name(tmp_path: Path) -> None:
    names = ['a "b"', "größer", "µ"]
    save_file(STATE, tmp_path / "m.safetensors", metadata={"class_names": json.dumps(names)})
    assert read_weights(tmp_path / "m.safetensors").description.class_names == tuple(names)
