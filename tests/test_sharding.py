import jax
import pytest
from jax.sharding import PartitionSpec as P

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import abstract_params
from l2s_jax.sharding import (
    MeshConfig,
    batch_sharding,
    host_mesh,
    make_mesh,
    replicated,
    shardings,
)
from tests.model.test_config import TINY


def test_one_axis_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
    assert dict(make_mesh(MeshConfig(context=4)).shape)["data"] == 2
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    assert one.size == 1


def test_a_host_s_part_keeps_each_device_s_place_on_the_tensor_axis():
    """Here one host has them all; `tests/training/test_hosts.py` has several."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    part = host_mesh(mesh)
    assert dict(part.shape) == {"data": 4, "fsdp": 1, "context": 1, "tensor": 2}
    for tensor in range(2):
        assert {*part.devices[..., tensor].flat} == {*mesh.devices[..., tensor].flat}
    shuffled = make_mesh(MeshConfig(), jax.devices()[::-1])
    assert list(shuffled.devices.flat) == jax.devices()  # a host's devices side by side, in order


def test_every_parameter_lies_as_its_axes_say():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    placed = shardings(abstract_params(ModelConfig(**TINY, tied=False)), mesh)
    assert placed["embed"]["embedding"].spec == P("tensor", "fsdp")
    assert placed["lm_head"].spec == P("fsdp", "tensor")
    layers = placed["layers"]
    assert layers["attention"]["q_proj"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert layers["attention"]["o_proj"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert layers["mlp"]["down_proj"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert layers["input_norm"]["scale"].spec == P(None, "fsdp")
    assert batch_sharding(mesh).spec == P(("data", "fsdp")) and replicated(mesh).spec == P()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 0}, "data=0"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
        ({"tensor": -2}, "tensor=-2"),
        ({"data": 3}, "there are 8"),
        ({"data": 3, "fsdp": -1}, "there are 8"),
    ],
)
def test_impossible_meshes(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize(
    ("axes", "change", "message"),
    [
        (
            {"tensor": 8},
            {"vocab_size": 100},
            r"embed\.embedding has shape \(100, 32\): its axis 0 of 100 .*into 8 equal parts,"
            r" .*mesh axis 'tensor'\. Set MeshConfig\.tensor to a divisor of it, such as 4\.",
        ),
        (
            {"tensor": 8},
            {"ffn_width": 36},
            r"layers\.mlp\.\w+\.kernel has shape .*of 36 .*'tensor'.*such as 4",
        ),
        (
            {"fsdp": 8},
            {"width": 36},
            r"has shape .* of 36 .*into 8 equal parts.*MeshConfig\.fsdp to a divisor.*such as 4",
        ),
    ],
)
def test_a_mesh_that_does_not_cut_evenly_is_refused(axes, change, message):
    mesh = make_mesh(MeshConfig(data=1, **axes))
    cfg = ModelConfig(**TINY | change, tied=False)
    with pytest.raises(ValueError, match=message):
        shardings(abstract_params(cfg), mesh)
    smaller = make_mesh(MeshConfig(data=2, **dict.fromkeys(axes, 4)))
    placed = jax.tree.leaves(shardings(abstract_params(cfg), smaller))
    assert all(isinstance(leaf, jax.sharding.NamedSharding) for leaf in placed)
